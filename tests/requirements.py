"""Skip or fail a test on a machine that lacks something."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

OF_PYNETDICOM = ("echoscp", "echoscu", "findscu", "getscu", "movescu", "qrscp", "storescp", "storescu")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test on a laptop. Fail it in CI, where everything is installed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def require_program(name: str) -> str:
    """The path of a program: in ``PATH``, in a folder that Debian omits for ordinary users, or beside Python.

    pynetdicom installs programs with the names of dcmtk's beside Python. Those are not a peer by other people.
    """
    beside = str(Path(sys.executable).parent)
    folders = [each for each in os.environ.get("PATH", os.defpath).split(os.pathsep) if each != beside]
    folders += ["/usr/sbin", "/sbin", *([] if name in OF_PYNETDICOM else [beside])]
    program = shutil.which(name, path=os.pathsep.join(folders))
    if program is None:
        skip_or_fail(f"the program {name} is not installed (root: python tests/programs.py installs it from Debian)")
    return program
