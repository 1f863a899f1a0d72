"""HTML pages from Jinja2 templates. A page is one file: it loads nothing and runs no script.

Every page extends ``base.html``, which has the style, the content security policy, the contents and the print rules.
``parts.html`` has macros for pictures, legends and plots. All text is escaped; so are characters that hide or reverse
others.
"""

from __future__ import annotations

import re

from gliaflow_runtime.visible import visible
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from gliaflow_pages.drawing import FOUND, TRUE


def render_page(package: str, template: str, **values: object) -> str:
    """Render the page ``template``, which is in the folder ``templates`` of ``package``."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("gliaflow_pages")]),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(values, found_colour=FOUND, true_colour=TRUE)
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text) + "\n"


def _visible(value: object) -> object:
    return "\n".join(map(visible, value.split("\n"))) if type(value) is str else value  # Markup is a template's
