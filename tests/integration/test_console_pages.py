"""The console's page of a pipeline of real processes on RabbitMQ."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import ConsoleProcess, NewPage, chromium, drop, new_page, scan_row
from playwright.sync_api import expect
from processes import Command, Stage, as_user
from requirements import require_program
from sample_scans import good_scan

__all__ = ["chromium", "new_page"]
STAGES = ("preprocessor", "extractor", "generator", "classifier")
GONE_MS = 10_000


@pytest.fixture
def console(rabbitmq_url: str, tmp_path: Path) -> Iterator[ConsoleProcess]:
    require_program("chromium")
    process = ConsoleProcess(tmp_path, settings=as_user("console", rabbitmq_url), broker=rabbitmq_url)
    process.start()
    yield process
    assert process.stop() == 0, process.log


def test_a_killed_stage_goes_red_and_its_scans_are_answered_after_its_restart(
    stages: Callable[..., list[Stage]], console: ConsoleProcess, new_page: NewPage, gliaflow: Command, tmp_path: Path
) -> None:
    processes = dict(zip(STAGES, stages(*STAGES), strict=True))
    page = new_page(console.address)
    states = page.locator(".stage .state")
    expect(states).to_have_text(["running"] * 6)
    processes["extractor"].stop(signal.SIGKILL)
    extractor = page.locator(".stage[data-stage=extractor]")
    expect(extractor).to_have_attribute("data-state", "gone", timeout=GONE_MS)
    expect(extractor.locator(".state")).to_have_text("gone")
    expect(page.locator(".strip-line")).to_contain_text("no extractor runs")
    drop(page, good_scan(tmp_path / "K1_flair.nii.gz"))
    expect(scan_row(page, "K1_flair").locator(".c-state")).to_contain_text("in work")
    stages("extractor")
    expect(states).to_have_text(["running"] * 6)
    expect(scan_row(page, "K1_flair").locator(".c-state")).to_contain_text("answered")

    gliaflow("submit", good_scan(tmp_path / "L1_flair.nii.gz"), "--out", tmp_path / "out", broker=console.broker)
    expect(scan_row(page, "L1_flair")).to_contain_text("by another client")
    expect(scan_row(page, "L1_flair").locator(".c-state")).to_contain_text("answered")
