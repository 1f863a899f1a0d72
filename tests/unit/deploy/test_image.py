"""The image takes no file from a package index whose SHA-256 is not in deploy/hashes.txt."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest
from requirements import skip_or_fail

ROOT = Path(__file__).parents[3]
HASHES = ROOT / "deploy" / "hashes.txt"
DOCKERFILE = re.sub(r"\s*\\\n\s*", " ", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
INSTALLS = re.findall(r"bin/pip[^&;\n]* install ([^&;\n]+)", DOCKERFILE)


def versions(path: Path) -> dict[str, str]:
    """The version of each package in a requirements file, by its normalized name."""
    pinned = re.findall(r"^([\w.-]+)==([\w.+]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned}


def test_the_hashes_are_of_the_versions_in_constraints_txt() -> None:
    assert versions(HASHES) == versions(ROOT / "constraints.txt"), "run `make lock`"
    (cpu,) = versions(ROOT / "deploy" / "hashes-torch.txt").values()
    assert cpu == versions(HASHES)["torch"] + "+cpu", "run `make lock TORCH_INDEX=…`"


def test_each_install_checks_hashes_and_runs_no_code_of_a_source_archive() -> None:
    assert len(INSTALLS) == 5
    for install in INSTALLS:
        if install.split()[-1] != ".":  # this project, from the build context
            assert "--require-hashes --only-binary :all:" in install
        else:
            assert "--no-deps --no-build-isolation" in install, "its build would take setuptools from the index"


def test_the_build_context_has_the_files_that_the_image_copies() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for names in copied for name in names.split()} == kept


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A package index: a folder with the wheels of ``app``, which needs ``library``."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, "app", requires="library")
    write_wheel(folder, "library")
    return folder


def write_wheel(folder: Path, name: str, requires: str = "", code: str = "") -> str:
    """Write the wheel of version 1.0, and return its SHA-256."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def build(index: Path, hashes: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Install ``app`` as the Dockerfile installs its dependencies."""
    if int(pip.__version__.split(".")[0]) < 26:
        skip_or_fail(
            f"pip {pip.__version__} takes no hashes from a constraints file; the image's pip does: run `make test`"
        )
    folder = index.parent
    (folder / "requirements.txt").write_text("app\n")
    (folder / "hashes.txt").write_text("".join(f"{name}==1.0 --hash=sha256:{hashes[name]}\n" for name in hashes))
    (options,) = [install for install in INSTALLS if "-r requirements.txt -c hashes.txt" in install]
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", *options.split()]
    command += ["--no-index", "--find-links", str(index), "--target", str(folder / "image")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def hashes_of(index: Path) -> dict[str, str]:
    return {path.name.split("-")[0]: hashlib.sha256(path.read_bytes()).hexdigest() for path in index.iterdir()}


def test_the_listed_wheels_are_installed(index: Path) -> None:
    done = build(index, hashes_of(index))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (index.parent / "image").glob("*.py")} == {"app.py", "library.py"}


def test_a_wheel_that_was_swapped_on_the_index_ends_the_build(index: Path) -> None:
    hashes = hashes_of(index)
    write_wheel(index, "library", code="print('not what it was')")
    done = build(index, hashes)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "library" in done.stderr
    assert not (index.parent / "image").exists()


def test_a_package_without_a_hash_ends_the_build(index: Path) -> None:
    hashes = hashes_of(index)
    write_wheel(index, "app", requires="library, another")
    write_wheel(index, "another")
    hashes["app"] = hashes_of(index)["app"]
    done = build(index, hashes)
    assert done.returncode == 1
    assert "another" in done.stderr
    assert not (index.parent / "image").exists()
