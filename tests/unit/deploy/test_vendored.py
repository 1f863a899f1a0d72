"""What the package brings from others: its licence and notices ship with it, and the bill of materials lists it."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "services" / "gliaflow_console" / "pages"
NIIVUE = PAGES / "niivue"
BILL = json.loads((NIIVUE / "niivue.cdx.json").read_text(encoding="utf-8"))
PHANTOMS = ROOT / "services" / "gliaflow_phantoms"
ATLAS = json.loads((PHANTOMS / "icbm152.cdx.json").read_text(encoding="utf-8"))
NOTICES = (NIIVUE / "NOTICES.md").read_text(encoding="utf-8")


def test_the_bill_of_materials_lists_the_file_by_its_digest_and_what_it_bundles() -> None:
    (niivue,) = BILL["components"]
    assert (niivue["name"], niivue["version"]) == ("niivue", "0.69.0")
    (digest,) = niivue["hashes"]
    script = gzip.decompress((NIIVUE / "niivue.umd.js.gz").read_bytes())
    assert digest["content"] == hashlib.sha256(script).hexdigest()
    assert b'version:"0.69.0"' in script
    references = [niivue["bom-ref"], *(each["bom-ref"] for each in niivue["components"])]
    assert len(set(references)) == len(references)


def test_the_notices_have_each_library_with_its_licence_and_copyright() -> None:
    """The page of notices and the bill of materials are the same list. The text of each licence is in the page."""
    rows = re.findall(r"^\| (\S+) \| ([\w. ]+) \| ([\w.-]+) \| (.+?) \| .*\|$", NOTICES, re.MULTILINE)
    listed = {name: (version, licence, owner) for name, version, licence, owner in rows if name != "library"}
    (niivue,) = BILL["components"]
    for each in niivue["components"]:
        (licence,) = (one["license"]["id"] for one in each["licenses"])
        name = f"{each['group']}/{each['name']}" if "group" in each else each["name"]
        assert listed.pop(name) == (each.get("version", "not stated"), licence, each["copyright"])
        assert f"\n## {licence}\n" in NOTICES
    assert not listed
    for library in ("fflate", "gl-matrix", "nifti-reader-js", "zarrita", "numcodecs", "array-equal"):
        assert library in NOTICES
    assert "Copyright (c) 2021, Niivue" in (NIIVUE / "LICENSE").read_text(encoding="utf-8")


def test_the_bill_of_materials_has_the_notice_of_the_average_brain_word_for_word() -> None:
    (atlas,) = ATLAS["components"]
    (licence,) = (each["license"] for each in atlas["licenses"])
    notice = (PHANTOMS / "icbm152.txt").read_text(encoding="utf-8")
    assert notice.endswith("\n\n" + licence["text"]["content"])
    assert licence["text"]["content"].startswith("Copyright (C) 1993-2004 Louis Collins")


def test_the_image_adds_them_to_its_bill_of_materials(tmp_path: Path) -> None:
    """With the command of the Dockerfile."""
    dockerfile = re.sub(r"\s*\\\n\s*", " ", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
    (code,) = re.findall(r'python3 -c "(import json, pathlib; .+?)"', dockerfile)
    (tmp_path / "gliaflow.cdx.json").write_text(json.dumps({"components": [{"name": "starlette"}]}))
    subprocess.run([sys.executable, "-c", code.replace("/out/", f"{tmp_path}/")], cwd=ROOT, check=True)
    merged = json.loads((tmp_path / "gliaflow.cdx.json").read_text())
    assert merged["components"] == [{"name": "starlette"}, *BILL["components"], *ATLAS["components"]]


def test_wheel_and_source_archive_have_all_files_of_the_pages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["gliaflow_console"]
    packed = {path for pattern in patterns for path in PAGES.parent.glob(pattern)}
    assert {path for path in PAGES.rglob("*") if path.is_file()} <= packed
    licences = {path for pattern in project["project"]["license-files"] for path in ROOT.glob(pattern)}
    atlas = PHANTOMS / "icbm152.txt"
    assert licences == {ROOT / "LICENSE", NIIVUE / "LICENSE", NIIVUE / "NOTICES.md", atlas}
    brought = {path.name for path in PHANTOMS.glob("icbm152.*")}
    assert brought == set(project["tool"]["setuptools"]["package-data"]["gliaflow_phantoms"])
