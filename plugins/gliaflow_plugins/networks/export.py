"""Exports a bundle's torch networks to ONNX, and checks that both forms of a network give the same outputs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from gliaflow_plugins.contracts import Fitted
from gliaflow_plugins.networks.exporter_tables import tables_built_once

OPSET = 18
TOLERANCE = 1e-3  # of an output's largest value: float32 sums in another order differ by up to a tenth of this
BATCHES = (1, 2, 5)
MOST_NOISE = 65536  # the limit of a bundle's manifest


class ExportError(RuntimeError):
    """The ONNX file and the torch network give different outputs. The text has the batch size and the difference."""


def export(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> Path:
    """Write ``module``, in evaluation mode, to one ONNX file with a free batch size, and check the file.

    Parameters
    ----------
    example_inputs: one tensor for each input, [n, …] with n ≥ 2 (the exporter takes a batch of 1 for a constant). The
        check uses them too, so they should resemble real inputs.
    path: the file. It has no external data, so the network must be under 2 GB.

    Returns
    -------
    ``path``.

    Raises
    ------
    ValueError: the example's batch is below 2.
    ExportError: torch and onnxruntime differ by more than a thousandth of the largest value, at a batch of 1, 2 or 5.
    """
    if any(len(example) < 2 for example in example_inputs):
        raise ValueError("export needs an example batch of at least 2")
    module = module.eval().cpu()
    inputs = tuple(example.detach().cpu() for example in example_inputs)
    batch = torch.export.Dim("batch")
    with _quiet(), tables_built_once():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # it is None only if a file was named
    model = program.model_proto
    _remove_metadata(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    _compare(module, inputs, path, input_names, output_names)
    return path


def export_generator(fitted: Fitted, folder: Path, shape: tuple[int, int, int], name: str) -> list[Path]:
    """Write a fitted variant as ``generator-NAME.onnx`` and ``critic-NAME.onnx`` into ``folder``.

    Parameters
    ----------
    shape: [C, H, W] of a feature.

    Raises
    ------
    ExportError: see ``export``; or the networks break the contract of ``gliaflow_plugins.contracts.Fitted``.
    """
    if not 0 < fitted.nz <= MOST_NOISE:
        raise ExportError(f"{name}: nz is {fitted.nz}; it must be from 1 to {MOST_NOISE}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = torch.randn(5, fitted.nz)
    label = torch.tensor([0, 1, 0, 1, 1])
    with torch.no_grad():
        features = fitted.generator.eval().cpu()(z, label)
        if tuple(features.shape) != (5, *shape):
            raise ExportError(
                f"{name}: its generator must return {[5, *shape]} for 5 labels, not {list(features.shape)}"
            )
        if not features.isfinite().all():
            raise ExportError(f"{name}: its generator returns values that are not finite")
        outputs = fitted.critic.eval().cpu()(features)
    shapes = [list(output.shape) for output in outputs]
    if shapes != [[5], [5, 2]]:
        raise ExportError(f"{name}: its critic must return [5] and [5, 2] for 5 features, not {shapes}")
    return [
        export(fitted.generator, [z, label], folder / f"generator-{name}.onnx", ["z", "label"], ["features"]),
        export(
            fitted.critic, [features], folder / f"critic-{name}.onnx", ["features"], ["source_logit", "class_logits"]
        ),
    ]


def _remove_metadata(model: onnx.ModelProto) -> None:
    # The exporter stores the Python stack of every node: paths of this machine in a file that is digested and shipped,
    # and a large part of the size of a small network.
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def _compare(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        rows = torch.arange(batch) % len(inputs[0])
        fed = [value[rows] for value in inputs]
        with torch.no_grad():
            output = module(*fed)
        expected = [output] if isinstance(output, Tensor) else list(output)
        outputs = session.run(
            list(output_names), {name: value.numpy() for name, value in zip(input_names, fed, strict=True)}
        )
        for name, want, got in zip(output_names, expected, outputs, strict=True):
            if got.shape != tuple(want.shape):
                raise ExportError(f"{path.name}: {name} is {got.shape} at batch {batch}, not {tuple(want.shape)}")
            largest = max(float(want.abs().max()), 1e-6)
            worst = float(np.abs(got - want.numpy()).max()) / largest
            if not worst <= TOLERANCE:  # true for NaN too
                raise ExportError(f"{path.name}: {name} differs by {worst:.1e} of its range at batch {batch}")


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns about its own dependencies and logs its progress; neither concerns this network.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
