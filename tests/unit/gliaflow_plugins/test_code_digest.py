"""The code digest changes with the code that a fit depends on, and with no other code."""

from __future__ import annotations

import shutil
from pathlib import Path

import gliaflow_plugins
import pytest
from gliaflow_plugins.code_digest import digest, imported_files
from gliaflow_plugins.registry import Origin, Registry, load_registry

PACKAGE = Path(str(gliaflow_plugins.__file__)).parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a copy of the package."""
    shutil.copytree(PACKAGE, tmp_path / "gliaflow_plugins")
    return tmp_path


def imported(module: str, root: Path = PACKAGE.parent) -> set[str]:
    return {str(path.relative_to(root / "gliaflow_plugins")) for path in imported_files(module, root)}


def test_imports_inside_functions_and_indirect_ones_count() -> None:
    files = imported("gliaflow_plugins.generators.infogan")
    assert files >= {"generators/infogan.py", "gan.py", "gan_losses.py", "networks/gan_training.py"}
    assert files >= {"networks/gan_networks.py", "networks/tumour_statistics.py", "features.py", "contracts.py"}
    assert not {path for path in files if path.startswith(("cohorts", "augmentations", "generators/acgan"))}
    assert not files & {"registry.py", "testing.py", "shipped.py", "networks/cnn.py"}


@pytest.mark.parametrize(
    ("changed", "refits"),
    [
        ("cohorts/layouts.py", False),
        ("augmentations/shipped.py", False),
        ("networks/export.py", False),
        ("generators/reacgan.py", False),
        ("registry.py", False),
        ("networks/gan_training.py", True),
        ("networks/mixed_precision.py", True),
        ("generators/infogan.py", True),
        ("features.py", True),
    ],
)
def test_only_a_change_of_code_that_a_fit_depends_on_changes_the_digest(root: Path, changed: str, refits: bool) -> None:
    before = digest(imported_files("gliaflow_plugins.generators.infogan", root))
    with (root / "gliaflow_plugins" / changed).open("a") as file:
        file.write("# a change\n")
    assert (digest(imported_files("gliaflow_plugins.generators.infogan", root)) != before) == refits


def test_each_shipped_variant_has_the_digest_of_its_own_imports() -> None:
    registry = load_registry()
    codes = {name: registry.code_of("generator", name) for name in registry.generators}
    assert codes["acgan"] != codes["infogan"] != codes["smote"]
    assert codes["smote"] == codes["mixup"], "they are in one module"
    assert registry.code_of("classifier", "cnn") == digest(
        imported_files("gliaflow_plugins.classifiers", PACKAGE.parent)
    )
    assert Registry(generators=registry.generators).code_of("generator", "acgan") == "", "without an origin"


def test_a_third_party_plugin_has_the_digest_of_its_file_or_of_its_package(tmp_path: Path) -> None:
    registry = load_registry()

    def code_of(file: Path) -> str:
        registry.origins["generator", "mine"] = Origin("mine", "mine", "1", str(file))
        return registry.code_of("generator", "mine")

    lone, package = tmp_path / "lone.py", tmp_path / "package"
    package.mkdir()
    for file in (lone, package / "__init__.py", package / "networks.py"):
        file.write_text("")
    before = code_of(lone), code_of(package / "__init__.py")
    (package / "networks.py").write_text("# a change")
    assert code_of(lone) == before[0]
    assert code_of(package / "__init__.py") != before[1]
