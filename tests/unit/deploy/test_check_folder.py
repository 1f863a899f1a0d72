"""A second clone does not start containers on the volumes of the first (``deploy/rabbitmq/check_folder.py``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy/rabbitmq/check_folder.py"
MOUNT = "669 652 254:0 {path}/deploy/rabbitmq /deploy ro,relatime - ext4 /dev/vda rw"


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_folder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_folder_owns_the_project_and_starts_again_and_again(checker: ModuleType, tmp_path: Path) -> None:
    for _ in range(2):
        assert checker.check(tmp_path, "/home/anna/gliaflow", take_over=False) == ""


def test_a_second_folder_is_refused_with_both_folders_and_the_remedies(checker: ModuleType, tmp_path: Path) -> None:
    checker.check(tmp_path, "/home/anna/gliaflow", take_over=False)
    refusal = checker.check(tmp_path, "/home/ben/gliaflow", take_over=False)
    for part in ("/home/anna/gliaflow", "/home/ben/gliaflow", "COMPOSE_PROJECT_NAME=", "GLIAFLOW_AMQP_PORT="):
        assert part in refusal
    assert checker.check(tmp_path, "/home/anna/gliaflow", take_over=False) == "", "the first folder may start again"


def test_a_folder_that_was_moved_takes_the_project_over_on_request(checker: ModuleType, tmp_path: Path) -> None:
    checker.check(tmp_path, "/home/anna/gliaflow", take_over=False)
    assert checker.check(tmp_path, "/srv/gliaflow", take_over=True) == ""
    assert checker.check(tmp_path, "/srv/gliaflow", take_over=False) == ""
    assert checker.check(tmp_path, "/home/anna/gliaflow", take_over=False) != ""


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/home/anna/gliaflow", "/home/anna/gliaflow"),
        (r"/home/anna/my\040scans", "/home/anna/my scans"),  # the kernel escapes blanks
        ("/home/jürgen", "/home/jürgen"),
        ("", "/"),
    ],
)
def test_the_folder_is_read_from_the_mounts_of_the_container(checker: ModuleType, path: str, folder: str) -> None:
    other = "670 652 254:0 /var/lib/docker/volumes/x/_data /project rw - ext4 /dev/vda rw"
    assert checker.folder_of_clone(f"{other}\n{MOUNT.format(path=path)}\n") == folder


def test_where_the_folder_is_not_known_nothing_is_refused(checker: ModuleType, tmp_path: Path) -> None:
    checker.check(tmp_path, "/home/anna/gliaflow", take_over=False)
    assert checker.folder_of_clone("669 652 0:45 / /deploy ro - fakeowner x rw") == ""
    assert checker.check(tmp_path, "", take_over=False) == ""
