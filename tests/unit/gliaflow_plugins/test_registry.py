"""The registry: shipped plugins, installed ones and those of a folder; a broken one is listed and affects no other."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from gliaflow_plugins import PluginError, hookspecs
from gliaflow_plugins.conformance import CHECKS
from gliaflow_plugins.contracts import parse_options
from gliaflow_plugins.kinds import KINDS
from gliaflow_plugins.moved import MODULES, NAMES
from gliaflow_plugins.registry import load_registry


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a distribution of one file, with its entry point, to a folder on the path, as pip would."""

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


def test_shipped_plugins_are_registered_once() -> None:
    registry = load_registry()
    assert set(registry.augmentations) >= {
        "mirror-front-back",
        "mirror-left-right",
        "elastic",
        "rotation",
        "shift",
        "shear",
        "zoom",
    }
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


def test_an_installed_plugin_is_registered(install) -> None:
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
        (INVERT.format(name=""), "a name consists of letters"),
        (INVERT.format(name="../up"), "a name consists of letters"),
    ],
)
def test_a_broken_plugin_is_listed_and_affects_no_other(install, code: str, reason: str) -> None:
    install("gliaflow_broken", code)
    install("gliaflow_invert", INVERT.format(name="invert"))
    registry = load_registry()
    assert registry.generator("acgan").name == "acgan"
    assert registry.augmentation("invert").name == "invert"
    [problem] = registry.problems
    assert reason in problem.error
    assert (problem.origin.plugin, problem.origin.version) == ("gliaflow_broken", "1.2")
    assert "gliaflow_broken.py" in problem.origin.file


GENERATOR = """
from gliaflow_plugins import Options, hookimpl
{imports}

class Mine:
    name, options = "mine", Options
    def fit(self, features, options, {parameters}):
        pass

@hookimpl
def register_generators(register):
    register(Mine())
"""


@pytest.mark.parametrize(
    ("imports", "advice"),
    [
        (
            "from gliaflow_plugins.base import PluginError",
            "`gliaflow_plugins.base` is now `gliaflow_plugins.contracts`",
        ),
        ("from gliaflow_plugins.generators import Fitted", "`Fitted` is now in `gliaflow_plugins.contracts`"),
        ("import gliaflow_plugins.generators as g; g.Fitted", "`Fitted` is now in `gliaflow_plugins.contracts`"),
        ("from gliaflow_plugins.gan import hinge", "`hinge` is now in `gliaflow_plugins.gan_losses`"),
        ("from gliaflow_plugins.gan import GAN, Seen", "`Seen` is now in `gliaflow_plugins.gan_losses`"),
        (
            "from gliaflow_plugins.readers import Case, NiftiFile",
            "`gliaflow_plugins.readers` is now `gliaflow_plugins.contracts`",
        ),
        ("from gliaflow_plugins.pipeline import Pipeline", "is now `gliaflow_plugins.augmentations.pipeline`"),
        ("from gliaflow_plugins.export import export", "is now `gliaflow_plugins.networks.export`"),
    ],
)
def test_an_import_of_a_moved_name_is_answered_with_the_new_one(install, imports: str, advice: str) -> None:
    install("gliaflow_old", GENERATOR.format(imports=imports, parameters="context"))
    [problem] = load_registry().problems
    assert advice in problem.error
    assert "see docs/upgrading.md" in problem.error


def test_each_new_home_of_a_moved_name_exists() -> None:
    for module in set(MODULES.values()) | set(NAMES.values()):
        assert find_spec(f"gliaflow_plugins.{module}") is not None, module
    for name, module in NAMES.items():
        assert hasattr(import_module(f"gliaflow_plugins.{module}"), name), name
    for old in MODULES:
        assert find_spec(f"gliaflow_plugins.{old}") is None, f"{old} has not moved"


@pytest.mark.parametrize(
    "parameters",
    [
        '*, seed, device="cpu", progress=None, checkpoint=None',
        "seed, **how",
        "**how",
    ],
)
def test_a_fit_of_the_old_contract_is_refused_with_the_new_signature(install, parameters: str) -> None:
    install("gliaflow_old", GENERATOR.format(imports="", parameters=parameters))
    registry = load_registry()
    assert "mine" not in registry.generators
    [problem] = registry.problems
    assert "generator 'mine': fit(features, options, " in problem.error
    assert "must be fit(features, options, context)" in problem.error
    assert "context has seed, device, progress, checkpoint, source; see docs/upgrading.md" in problem.error


def test_a_classifier_of_the_old_contract_is_refused_with_the_new_signature(install) -> None:
    code = GENERATOR.format(imports="", parameters="*, learn, choose, patients, weights, seed, device, progress")
    install("gliaflow_old", code.replace("register_generators", "register_classifiers"))
    [problem] = load_registry().problems
    assert "must be fit(features, options, samples, context)" in problem.error
    assert "samples has learn, choose, patients, weights, unlabelled; context has seed" in problem.error


def test_an_augmentation_that_takes_other_arguments_is_refused(install) -> None:
    install("gliaflow_old", INVERT.format(name="x").replace("(self, image, mask, rng, options)", "(self, image)"))
    [problem] = load_registry().problems
    assert "augmentation 'x': __call__(image) must be __call__(image, mask, rng, options)" in problem.error


def test_an_unknown_name_lists_the_usable_ones_and_the_failures(install) -> None:
    install("gliaflow_broken", "raise RuntimeError('no such GPU')")
    with pytest.raises(PluginError, match=r"no usable generator 'nobody'.*acgan(.|\n)*gliaflow_broken.*no such GPU"):
        load_registry().generator("nobody")


def test_neither_of_two_plugins_may_have_the_same_name_and_the_error_names_both(install) -> None:
    install("gliaflow_one", INVERT.format(name="invert"))
    install("gliaflow_two", INVERT.format(name="invert"))
    registry = load_registry()
    assert registry.augmentation("zoom").name == "zoom"
    with pytest.raises(PluginError) as caught:
        registry.augmentation("invert")
    assert "gliaflow_one" in str(caught.value)
    assert "gliaflow_two" in str(caught.value)


def test_options_are_checked_by_name_and_range() -> None:
    acgan = load_registry().generator("acgan")
    assert parse_options(acgan, {"steps": "3"}).model_dump()["steps"] == 3
    with pytest.raises(PluginError, match=r"acgan: steps=0 must be greater.*defaults: nz=64, ngf=32"):
        parse_options(acgan, {"steps": 0})
    with pytest.raises(PluginError, match="no_such"):
        parse_options(acgan, {"no_such": 1})


def test_a_folder_of_plugins_is_read_only_if_the_environment_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have modules and packages. A broken module, and one with the name of a library, are problems."""
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
    assert {"filed", "packed", "zoom"} <= set(registry.augmentations)
    assert str(registry.origins["augmentation", "filed"].file) == str(tmp_path / "in_a_file.py")
    broken, hidden = (str(problem) for problem in registry.problems)
    assert "broken_here" in broken
    assert "ZeroDivisionError" in broken
    assert "numpy" in hidden
    assert "rename the plugin" in hidden
    monkeypatch.setenv("GLIAFLOW_PLUGINS", "plugins.d")  # in the working folder, which may have come with scans
    with pytest.raises(PluginError, match=r"GLIAFLOW_PLUGINS: plugins.d is not an absolute path"):
        load_registry()
    monkeypatch.setenv("GLIAFLOW_PLUGINS", str(tmp_path / "nowhere"))
    with pytest.raises(PluginError, match=r"GLIAFLOW_PLUGINS: .*nowhere is not a folder"):
        load_registry()


def test_each_kind_has_its_hook_its_template_and_its_checks() -> None:
    assert {kind.hook for kind in KINDS.values()} == {name for name in vars(hookspecs) if name.startswith("register_")}
    templates = {path.name for path in (Path(hookspecs.__file__).parent / "templates").iterdir()}
    assert templates == {"pyproject.toml.tmpl", *(kind.template for kind in KINDS.values())}
    assert set(CHECKS) == set(KINDS)
    assert KINDS["classifier"].parameters == ["features", "options", "samples", "context"]


def test_a_gan_with_networks_of_the_old_contract_is_refused(install) -> None:
    module = "from gliaflow_plugins.gan import GAN\nclass Mine(GAN):\n    def setup(self): ..."
    install("gliaflow_old", module)
    [problem] = load_registry().problems
    assert "Mine.setup: is not called any more; set networks, or override fit; see docs/upgrading.md" in problem.error
