"""Torch's ONNX exporter builds the same tables of operators anew for each file. Here it builds them once.

The tables are internals of torch, so their names are looked up: one that another version does not have costs time and
nothing else. The files are the same, byte for byte.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any


def _typing_callable(_: object) -> object:
    return typing.Callable  # torch subscripts it thousands of times: this one keeps the results


_TABLES: tuple[tuple[str, str, str, Callable[[Any], object]], ...] = (  # module, holder in it, name, its replacement
    (
        "torch.onnx._internal.exporter._registration",
        "ONNXRegistry",
        "from_torchlib",
        lambda method: staticmethod(cache(method)),
    ),
    ("torch._export.utils", "", "_materialize_cpp_cia_ops", cache),
    ("torch._ops", "", "Callable", _typing_callable),
)


@contextmanager
def tables_built_once() -> Iterator[None]:
    """Within the context, torch's exporter uses the tables of its earlier files in such a context."""
    with ExitStack() as stack:
        for holder, name, replacement in _replacements():
            stack.callback(setattr, holder, name, vars(holder)[name])
            setattr(holder, name, replacement)
        yield


@cache
def _replacements() -> list[tuple[Any, str, object]]:
    found: list[tuple[Any, str, object]] = []
    for module, path, name, replace in _TABLES:
        with suppress(ImportError, AttributeError):
            imported = import_module(module)
            holder = getattr(imported, path) if path else imported
            found.append((holder, name, replace(getattr(holder, name))))
    return [(holder, name, replacement) for holder, name, replacement in found if name in vars(holder)]
