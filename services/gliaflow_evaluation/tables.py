"""Tables of functions: a decorator enters a function, whose name and docstring name and describe the entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import cleandoc
from typing import Any, ClassVar, Generic, TypeVar

Compute = TypeVar("Compute", bound=Callable[..., Any])


@dataclass
class Entry(Generic[Compute]):
    """An entry of a table, and the decorator that enters it. ``title`` is for people."""

    table: ClassVar[dict[str, Any]]
    title: str
    name: str = field(init=False)
    description: str = field(init=False)
    compute: Compute = field(init=False)

    def __call__(self, compute: Compute) -> Compute:
        self.name, self.compute = compute.__name__, compute
        self.description = " ".join(cleandoc(compute.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
        self.table[self.name] = self
        return compute
