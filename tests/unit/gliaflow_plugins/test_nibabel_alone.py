"""The DICOM data in the header of a NIfTI file from a client is never parsed, and no stage loads a DICOM decoder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = [path for folder in ("proto", "plugins", "services") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("first", ["gliaflow_preprocessor.preprocessor", "pydicom"])
def test_nibabel_does_not_use_pydicom(first: str) -> None:
    pytest.importorskip("pydicom")
    code = f"""
import {first}, sys
from gliaflow_plugins.nibabel_alone import nib
assert not nib.nifti1.have_dicom
assert ("pydicom" in sys.modules) == {first == "pydicom"}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_else_imports_nibabel() -> None:
    imports = {path.name for path in CODE if re.search(r"^ *(import|from) nibabel", path.read_text(), re.MULTILINE)}
    assert imports == {"nibabel_alone.py"}
