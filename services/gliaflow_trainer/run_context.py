"""What every step of a run shares: its seed, its device, and the bar that shows its progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gliaflow_pages.curves import WORDS
from gliaflow_plugins.contracts import FitContext
from rich.progress import Progress

LOSSES = {"loss_d": "discriminator's loss", "loss_g": "generator's loss", "val_loss": "loss of validation patients"}
SECONDS = {"seconds": "taken", "left_seconds": "left", "left_seconds_of_all_fits": "left of all fits"}


@dataclass(frozen=True)
class RunContext:
    """Passed whole from step to step. With a ``bar`` of ``Progress(disable=True)``, nothing is shown or printed.

    Parameters
    ----------
    of: what the fits are of, before the title of each row: ``fold 1/5: ``.
    fits_after: how many fits of a U-Net follow the one that runs, each about as long; for the time left.
    """

    seed: int
    device: str
    bar: Progress
    of: str = ""
    fits_after: int = 0

    @contextmanager
    def fit(self, title: str, epochs: int | None = None, checkpoint: Path | None = None) -> Iterator[FitContext]:
        """A row of the bar for one fit, and what the fit is passed. Without a terminal, each epoch prints a line."""
        bar, title = self.bar, f"{self.of}{title}"
        row = bar.add_task(title, total=epochs)

        def show(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
            bar.update(row, completed=epoch, total=epochs)
            if self.fits_after and "left_seconds" in figures:
                left = figures["left_seconds"] + self.fits_after * (figures["seconds"] + figures["left_seconds"])
                bar.update(row, description=f"{title} ({left / 60:.0f} min left of all fits)")
                figures = {**figures, "left_seconds_of_all_fits": left}
            if not bar.console.is_terminal and not bar.disable:
                bar.console.print(f"{title} {epoch}/{epochs}: {in_words(figures)}", soft_wrap=True)

        yield FitContext(self.seed, self.device, show, checkpoint)
        bar.remove_task(row)


def in_words(figures: Mapping[str, float]) -> str:
    """An epoch's figures for a log: ``loss 0.84, Dice of validation patients 0.7, 16 s taken, 32 s left``."""
    return ", ".join(_in_words(name, value) for name, value in figures.items())


def _in_words(name: str, value: float) -> str:
    if name in SECONDS:
        time = f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
        return f"{time} {SECONDS[name]}"
    known = LOSSES.get(name) or WORDS.get(name, name.replace("_", " "))
    of = " of validation patients" if name.startswith("val_") and name not in LOSSES else ""
    kind = "accuracy on " if name.startswith("accuracy_") and name in WORDS else ""
    return f"{kind}{known}{of} {value:.3g}"
