"""The kinds of plugins: the one table that the registry, the commands and the conformance kit read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from gliaflow_plugins.contracts import Augmentation, ClassifierVariant, GeneratorVariant, Reader, Step


@dataclass(frozen=True)
class PluginKind:
    """One kind of plugin. ``method`` is the one that gliaflow calls; the names of hook and template are derived.

    ``conformance.CHECKS`` has the checks of each kind.
    """

    name: str
    protocol: type
    method: str
    has_options: bool = True

    @property
    def plural(self) -> str:
        return f"{self.name}s"

    @property
    def hook(self) -> str:
        return f"register_{self.plural}"

    @property
    def template(self) -> str:
        """The file in ``templates`` that ``gliaflow plugins new`` starts from."""
        return f"{self.name}.py.tmpl"

    @property
    def parameters(self) -> list[str]:
        """The arguments that gliaflow passes to ``method``, all by position."""
        return list(inspect.signature(getattr(self.protocol, self.method)).parameters)[1:]


KINDS = {
    kind.name: kind
    for kind in (
        PluginKind("augmentation", Augmentation, "__call__"),
        PluginKind("generator", GeneratorVariant, "fit"),
        PluginKind("classifier", ClassifierVariant, "fit"),
        PluginKind("step", Step, "__call__"),
        PluginKind("reader", Reader, "read", has_options=False),
    )
}
