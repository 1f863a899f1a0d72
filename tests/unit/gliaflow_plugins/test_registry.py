"""Plugins: what ships is there, one's own joins it, and a broken one is listed and takes nothing down."""

import subprocess
import sys
from pathlib import Path

import pytest
from gliaflow_plugins import PluginError
from gliaflow_plugins.contracts import parse_options
from gliaflow_plugins.registry import load_registry


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a one-file distribution on the path, with its entry point, as pip would."""

    def install(name: str, code: str) -> Path:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[gliaflow]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path / f"{name}.py"

    return install


INVERT = """
from gliaflow_plugins import Options, hookimpl

class Invert:
    name = "{name}"
    options = Options
    def __call__(self, image, mask, rng, options):
        return -image, mask

@hookimpl
def register_augmentations(register):
    register(Invert())
"""


def test_what_ships_is_there_once() -> None:
    registry = load_registry()
    assert set(registry.augmentations) >= {"hflip", "vflip", "elastic", "rotation", "shift", "shear", "zoom"}
    assert "acgan" in registry.generators
    assert "brats" in registry.readers
    assert registry.problems == []
    assert registry.origins["generator", "acgan"].distribution == "gliaflow"


def test_registering_imports_no_torch() -> None:
    code = (
        "import sys; sys.path[:] = sys.argv[1:]; from gliaflow_plugins.registry import load_registry; "
        "load_registry(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *sys.path], check=True)


def test_ones_own_joins(install) -> None:
    file = install("gliaflow_invert", INVERT.format(name="invert"))
    registry = load_registry()
    assert registry.augmentation("invert").name == "invert"
    origin = registry.origins["augmentation", "invert"]
    assert (origin.distribution, origin.version, origin.file) == ("gliaflow_invert", "1.2", str(file))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no such GPU')", "RuntimeError: no such GPU"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("def (:", "SyntaxError"),
        (INVERT.format(name="x").replace("def register_augmentations(", "def register_augmentation("), "unknown hook"),
        (INVERT.format(name="x").replace("(register):", "(registrar):"), "registrar"),
        (INVERT.format(name="x").replace("register(Invert())", "1 / 0"), "ZeroDivisionError"),
        (INVERT.format(name="x").replace("register(Invert())", "register(Invert)"), "register an instance"),
        (INVERT.format(name="x").replace("options = Options", "options = dict"), "pydantic model"),
        (INVERT.format(name=""), "a name is of letters"),
        (INVERT.format(name="../up"), "a name is of letters"),
    ],
)
def test_a_broken_plugin_is_listed_and_not_fatal(install, code: str, reason: str) -> None:
    install("gliaflow_broken", code)
    install("gliaflow_invert", INVERT.format(name="invert"))
    registry = load_registry()
    assert registry.generator("acgan").name == "acgan"
    assert registry.augmentation("invert").name == "invert"
    [problem] = registry.problems
    assert reason in problem.error
    assert (problem.origin.plugin, problem.origin.version) == ("gliaflow_broken", "1.2")
    assert "gliaflow_broken.py" in problem.origin.file


def test_asking_for_what_is_not_there_tells_what_is_and_what_failed(install) -> None:
    install("gliaflow_broken", "raise RuntimeError('no such GPU')")
    with pytest.raises(PluginError, match=r"no usable generator 'nobody'.*acgan(.|\n)*gliaflow_broken.*no such GPU"):
        load_registry().generator("nobody")


def test_a_name_taken_twice_is_nobodys_and_the_error_names_both(install) -> None:
    install("gliaflow_one", INVERT.format(name="invert"))
    install("gliaflow_two", INVERT.format(name="invert"))
    registry = load_registry()
    assert registry.augmentation("hflip").name == "hflip"
    with pytest.raises(PluginError) as caught:
        registry.augmentation("invert")
    assert "gliaflow_one" in str(caught.value)
    assert "gliaflow_two" in str(caught.value)


def test_options_are_checked_by_name_and_range() -> None:
    acgan = load_registry().generator("acgan")
    assert parse_options(acgan, {"steps": "3"}).model_dump()["steps"] == 3
    with pytest.raises(PluginError, match=r"acgan: steps.*greater.*options: nz, ngf"):
        parse_options(acgan, {"steps": 0})
    with pytest.raises(PluginError, match="no_such"):
        parse_options(acgan, {"no_such": 1})


def test_a_folder_of_plugins_is_read_where_it_is_named_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules and packages; a broken one, and one that an installed library would hide, are told."""
    (tmp_path / "in_a_file.py").write_text(INVERT.format(name="filed"))
    package = tmp_path / "in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("from in_a_package.code import *\n")
    (package / "code.py").write_text(INVERT.format(name="packed"))
    (tmp_path / "broken_here.py").write_text("1 / 0")
    (tmp_path / "numpy.py").write_text("raise SystemExit")
    (tmp_path / "_helper.py").write_text("raise SystemExit")
    (tmp_path / "notes.txt").write_text("nothing")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert "filed" not in load_registry().augmentations
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(tmp_path))
    registry = load_registry()
    assert {"filed", "packed", "hflip"} <= set(registry.augmentations)
    assert str(registry.origins["augmentation", "filed"].file) == str(tmp_path / "in_a_file.py")
    broken, hidden = (str(problem) for problem in registry.problems)
    assert "broken_here" in broken
    assert "ZeroDivisionError" in broken
    assert "numpy" in hidden
    assert "rename it" in hidden
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(tmp_path / "nowhere"))
    with pytest.raises(PluginError, match=r"GLIAFLOW_PLUGINS: .*nowhere is no folder"):
        load_registry()
