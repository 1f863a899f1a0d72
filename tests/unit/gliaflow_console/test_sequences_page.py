"""Scans with other sequences on the console's pages, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import ConsoleProcess, NewPage, drop, scan_row
from playwright.sync_api import expect
from requirements import require_program
from sample_sequences import lesion, save, several_channels, without_lesion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """With a bundle that reads FLAIR and T1 after contrast, and sees the latter alone."""
    require_program("chromium")
    folder = tmp_path_factory.mktemp("console")
    bundle = several_channels(folder / "bundle", ["flair", "t1ce"], sees="t1ce")
    process = ConsoleProcess(folder, ("--bundle", str(bundle)))
    process.start()
    yield process
    assert process.stop() == 0, process.log


def test_a_folder_of_two_patients(new_page: NewPage, console: ConsoleProcess, tmp_path: Path) -> None:
    head = lesion(folder=tmp_path)
    for name in ("P1", "P2"):
        save(tmp_path / f"in/{name}/{name}_flair.nii.gz", without_lesion(head))
    save(tmp_path / "in/P1/P1_t1ce.nii.gz", head)
    page = new_page(console.address)
    expect(
        page.get_by_text("The bundle also reads T1 after contrast. Send the files of a scan together")
    ).to_be_visible()
    drop(page, tmp_path / "in")
    failed, answered = scan_row(page, "P2_flair"), scan_row(page, "P1_flair")
    expect(failed).to_contain_text("The scan came without T1 after contrast, which this bundle needs.")
    expect(answered.locator(".c-state")).to_contain_text("answered")
    answered.get_by_role("link").click()
    expect(page.locator("dl.facts").last).to_contain_text("FLAIR, T1 after contrast")
    viewer = page.locator(".viewer[data-state=drawn]")
    expect(viewer).to_be_visible()
    with page.expect_response("**/view/image.nii.gz?sequence=t1ce") as response:
        page.get_by_label("Sequence", exact=True).select_option("T1 after contrast")
    assert response.value.ok
    expect(viewer).to_be_visible()
    expect(page.get_by_label("Sequence", exact=True)).to_be_enabled()
    page.get_by_role("button", name="Show the maps").click()
    expect(page.locator("ul.maps li").first).to_be_visible()
