"""The worked third-party example, installed with pip as its users would, is found, fitted and exported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "plugins" / "examples" / "gliaflow-meanvar"

USE_IT = """
import json, sys
from pathlib import Path
import numpy as np
from gliaflow_plugins.contracts import FitContext, parse_options
from gliaflow_plugins.features import ArrayFeatures
from gliaflow_plugins.registry import load_registry

registry = load_registry()
variant = registry.generator("meanvar")
before = "torch" in sys.modules
rng = np.random.default_rng(0)
labels = np.arange(80) % 2
features = np.maximum(0, rng.normal(1 + labels[:, None, None, None], 0.2, (80, 6, 5, 5))).astype(np.float32)
fitted = variant.fit(
    ArrayFeatures(features, labels, ("HGG", "LGG")), parse_options(variant, {"spread": 1.5}), FitContext(0)
)
from gliaflow_plugins.networks.export import export_generator
files = export_generator(fitted, Path(sys.argv[1]), (6, 5, 5), "meanvar")
import onnxruntime
run = onnxruntime.InferenceSession(str(files[0])).run
z = rng.standard_normal((64, fitted.nz)).astype(np.float32)
means = [float(run(None, {"z": z, "label": np.full(64, label)})[0].mean()) for label in (0, 1)]
origin = registry.origins["generator", "meanvar"]
print(json.dumps({
    "problems": [str(problem) for problem in registry.problems], "generators": sorted(registry.generators),
    "origin": [origin.distribution, origin.version, origin.file], "torch_before_fit": before, "means": means,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")  # building writes into the source's folder
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", folder / "site", source], check=True)
    return folder / "site"


def test_it_is_listed_fitted_and_exported(installed: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(installed), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-c", USE_IT, tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        stdout=subprocess.PIPE,
    )
    found = json.loads(answer.stdout)
    assert found["problems"] == []
    assert {"acgan", "meanvar"} <= set(found["generators"])
    distribution, version, file = found["origin"]
    assert (distribution, version) == ("gliaflow-meanvar", "0.1.0")
    assert Path(file).is_relative_to(installed)
    assert not found["torch_before_fit"]
    assert found["means"] == pytest.approx([1, 2], abs=0.1)


def test_the_variant_stays_short() -> None:
    """The README promises about fifteen lines; count what is between the class and the hook."""
    lines = (EXAMPLE / "gliaflow_meanvar" / "__init__.py").read_text().split("class MeanVar:")[1].splitlines()
    assert len([line for line in lines if line.strip()]) <= 16
