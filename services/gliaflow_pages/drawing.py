"""matplotlib for the pages: colours, style, and figures as pictures.

matplotlib takes a second to import, so it is imported when a figure is drawn. The colours are from the palette of Okabe
and Ito, which colour-blind readers can distinguish; markers and dashes carry the same distinctions without colour.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gliaflow_runtime.errors import UsageError
from numpy.typing import NDArray

BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#1b1f24", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00"
GREY = "#8c959f"
FOUND, TRUE = "#ffb000", "#40c4ff"  # outlines of masks, on black
INSTALL = "pip install matplotlib"
STYLE = {
    "text.parse_math": False,  # names are untrusted text: a $ in one is a $
    "svg.hashsalt": "gliaflow",  # the same figures give the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": BLACK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Picture:
    """A PNG or an SVG."""

    data: bytes

    @property
    def source(self) -> str:
        """The data URI for a page."""
        kind = "png" if self.data.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raises UsageError: matplotlib is not installed. The text has the command that installs it."""
    if not has_matplotlib():
        raise UsageError(f"this needs matplotlib: {INSTALL}")


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in this style. Characters that the font lacks are drawn as boxes.

    Nothing is taken from matplotlibrc, which may be in a working folder that came with scans: it may start LaTeX.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def panel(width: float = 4.5, height: float = 3.2) -> tuple[Any, Any]:
    """A figure with one pair of axes. A page shows its 4.5 inches as 27 rem (432 px), and 9 pt letters as 12 px."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.add_subplot()


def to_svg(figure: Any) -> Picture:
    """The figure as an SVG."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None})


def to_png(figure: Any, dpi: int) -> Picture:
    """The figure as a PNG."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def grey_png(pixels: NDArray[Any]) -> Picture:
    """Grey pixels [height, width], 0 black to 1 white, as a PNG; NaN is transparent."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="png", cmap="gray", vmin=0, vmax=1, metadata={"Software": "gliaflow"})
    return Picture(file.getvalue())


def _saved(figure: Any, **options: Any) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return Picture(file.getvalue())
