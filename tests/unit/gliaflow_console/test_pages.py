"""The first page, uploads, dead letters and reports, in a browser."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import ConsoleProcess, NewPage, drop, scan_row
from playwright.sync_api import Page, expect
from processes import GLIAFLOW, environment, free_port
from sample_dicom import head, single_frames
from sample_scans import good_scan

pytestmark = pytest.mark.slow
NARROW = {"width": 500, "height": 900}
PAGES = ("", "generators", "dead", "reports")
HOSTILE = "<img src=x onerror=document.title='stolen'>.nii.gz"
TOKEN = "a-token-of-the-operator"


def submitted(path: Path, folder: Path) -> list[dict[str, str]]:
    """The rows that ``gliaflow submit`` writes for this path."""
    arguments = ["submit", path, "--out", folder / "out"]
    done = subprocess.run(
        [*GLIAFLOW, *map(str, arguments)], env=environment(folder, "memory://"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with (folder / "out" / "predictions.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def as_shown(row: dict[str, str]) -> list[str]:
    """What the page shows of a row of ``predictions.csv``."""
    p = float(row["p_hgg"])
    shown = "< 0.01" if p < 0.005 else "> 0.99" if p >= 0.995 else f"{p:.3f}" if f"{p:.2f}" == "0.50" else f"{p:.2f}"
    return [row["grade"], shown, f"{float(row['tumour_ml']):.1f} ml"]


def expect_answer(page: Page, row: dict[str, str]) -> None:
    """The page shows the answer of a row of ``predictions.csv``, without a reload."""
    shown = scan_row(page, row["scan"])
    for text, column in zip(as_shown(row), ("grade", "p", "ml"), strict=True):
        expect(shown.locator(f".c-{column}")).to_have_text(text)
    expect(shown.locator(".c-state")).to_contain_text("answered")
    expect(shown.locator(".c-slices")).to_contain_text(f"of {row['slices']}")


def write_series(folder: Path) -> Path:
    """A folder with a small DICOM series."""
    folder.mkdir(parents=True)
    for number, image in enumerate(single_frames(head((80, 88, 12)))):
        image.save_as(folder / f"IM{number:04}", enforce_file_format=True)
    return folder


def wait_letter(console: ConsoleProcess, scan: str) -> None:
    """Wait until there is a dead letter of this scan."""
    deadline = time.monotonic() + 30
    while scan not in [letter["scan"] for letter in console.get("api/dead")["letters"]]:
        assert time.monotonic() < deadline, console.log
        time.sleep(0.2)


def wait_letter_count(console: ConsoleProcess, count: int) -> None:
    """Wait until so many messages are dead letters."""
    deadline = time.monotonic() + 60
    while console.get("api/status")["dead"] != count:
        assert time.monotonic() < deadline, console.log
        time.sleep(0.2)


def test_the_first_page_says_what_runs_and_what_to_do_next(new_page: NewPage, console: ConsoleProcess) -> None:
    hosts = set()
    page = new_page("about:blank")
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(console.address)
    expect(page).to_have_url(console.url)  # the token is not in the address any more
    stages = page.locator(".stage")
    expect(stages).to_have_count(6)
    expect(stages.locator(".state")).to_have_text(["running"] * 6)
    expect(page.get_by_role("heading", name="Drop a FLAIR scan anywhere on this page")).to_be_visible()
    expect(page.get_by_text("Trained on phantoms")).to_be_visible()
    expect(page.get_by_text("Not a medical device.")).to_be_visible()
    expect(page.get_by_text("“gliaflow console --out DIR” keeps them.")).to_be_visible()
    expect(page.locator("#link-state")).to_have_text("page connected")
    assert hosts == {urlsplit(console.url).netloc}


def test_a_dropped_file_gets_the_answer_of_submit(page: Page, tmp_path: Path) -> None:
    path = good_scan(tmp_path / "P7_flair.nii.gz")
    (row,) = submitted(path, tmp_path)
    expect(page.locator("#link-state")).to_have_text("page connected")
    title = page.get_by_role("heading", name="Newest scans")
    place = title.bounding_box()
    drop(page, path)
    expect_answer(page, row)
    assert title.bounding_box() == place  # nothing above the table has moved
    expect(scan_row(page, row["scan"]).locator(".c-scan")).to_contain_text(row["patient"])


def test_a_dropped_dicom_folder_gets_the_answer_of_submit(page: Page, tmp_path: Path) -> None:
    write_series(tmp_path / "A1" / "FLAIR")
    (row,) = submitted(tmp_path / "A1", tmp_path)
    drop(page, tmp_path / "A1")
    expect_answer(page, row)


def test_of_several_files_the_flair_scans_are_sent_and_the_others_named(page: Page, tmp_path: Path) -> None:
    paths = [good_scan(tmp_path / name) for name in ("B1_flair.nii.gz", "B1_t1ce.nii.gz")]
    drop(page, *paths)
    expect(page.locator(".upload-results")).to_contain_text("1 of 2 files was sent: B1_t1ce.nii.gz was left out")
    expect(page.locator(".upload-results")).to_contain_text("1 file left out")
    expect(scan_row(page, "B1_flair").locator(".c-state")).to_contain_text("answered")
    page.get_by_role("link", name="Reports").click()
    expect(page.locator(".upload-results")).to_be_hidden()


def test_a_folder_is_sent_by_a_choice_as_by_a_drop(page: Page, tmp_path: Path) -> None:
    (tmp_path / "C1").mkdir()
    good_scan(tmp_path / "C1" / "C1_flair.nii.gz")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder…").click()
    chooser.value.set_files(tmp_path / "C1")
    expect(scan_row(page, "C1_flair").locator(".c-state")).to_contain_text("answered")


def test_what_cannot_be_sent_says_why(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    drop(page, tmp_path / "empty")
    expect(page.locator(".upload-results")).to_contain_text("The folder has no files.")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no scan")
    drop(page, tmp_path / "notes")
    expect(page.locator(".upload-results")).to_contain_text("no FLAIR scan")
    for _ in range(2):
        page.get_by_role("button", name="Close").first.click()
    expect(page.locator(".upload-results")).to_be_hidden()


def test_a_broken_scan_fails_with_its_reason(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "D1_flair.nii.gz"
    path.write_bytes(b"no scan at all")
    drop(page, path)
    expect(scan_row(page, "D1_flair").locator(".c-state")).to_contain_text("failed")
    expect(scan_row(page, "D1_flair").locator(".c-reason")).to_contain_text("not a NIfTI file")
    scan_row(page, "D1_flair").get_by_role("link").click()
    expect(page.locator(".answer")).to_contain_text("not a NIfTI file: a text file. Send a NIfTI file")


def test_a_dead_letter_is_shown_sent_back_and_deleted(page: Page, console: ConsoleProcess, tmp_path: Path) -> None:
    path = tmp_path / "<b>J1_flair.nii.gz"
    path.write_bytes(b"no scan at all")
    drop(page, path)
    expect(page.locator("#dead-count")).to_be_visible()
    page.get_by_role("link", name="Dead letters").click()
    letters = page.locator("table.letters tbody tr[data-id]").filter(has_text="<b>J1_flair")
    expect(letters).to_contain_text("preprocessor")
    expect(letters).to_contain_text("not a NIfTI file")
    letters.get_by_role("button", name="Details").click()
    expect(page.locator("table.letters pre:visible")).to_contain_text("reason: not a NIfTI file")
    letters.get_by_role("checkbox").check()
    page.get_by_role("button", name="Send back (1)").click()
    expect(page.get_by_text("1 message sent back to its stage.")).to_be_visible()
    wait_letter(console, "<b>J1_flair")  # the stage has tried it again
    page.get_by_role("button", name="Refresh").click()
    expect(letters).to_have_count(1)
    page.get_by_role("checkbox", name="Choose all").check()
    page.get_by_role("button", name="Delete (").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(letters).to_have_count(1)
    page.get_by_role("button", name="Delete (").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No dead letters")).to_be_visible()
    assert console.get("api/dead")["letters"] == []


def test_a_dead_letter_whose_scan_is_gone_cannot_be_sent_back(page: Page, console: ConsoleProcess) -> None:
    id = json.loads(console.request("POST", "api/scans?name=Q1_flair.nii", b"no scan at all"))["id"]
    wait_letter(console, "Q1_flair")
    console.request("DELETE", f"api/scans/{id}")
    page.set_viewport_size(NARROW)
    page.goto(f"{console.url}#/dead")
    letter = page.locator("table.letters tbody tr[data-id]").filter(has_text="Q1_flair")
    expect(letter.locator(".reason")).to_contain_text("Cannot be sent back: the scan's file is not there any more")
    cell = letter.locator(".reason").bounding_box()
    assert cell is not None
    assert cell["width"] > NARROW["width"] / 2, "the cells stand one under another"
    letter.get_by_role("checkbox").check()
    send = page.get_by_role("button", name="Send back", exact=True)
    expect(send).to_be_disabled()
    expect(send).to_have_attribute("title", "the scan's file is not there any more: upload the scan again")
    expect(page.get_by_text(f"they lie in {console.get('api/dead')['folder']}")).to_be_visible()
    console.request("POST", "api/dead/delete", b'{"all": true}')


def test_all_dead_letters_are_deleted_at_once_and_one_that_dies_again_is_listed_again(
    page: Page, console: ConsoleProcess
) -> None:
    for number in range(27):
        console.request("POST", f"api/scans?name=M{number}_flair.nii", b"no scan at all")
    wait_letter_count(console, 27)
    page.goto(f"{console.url}#/dead")
    expect(page.get_by_text("2 further messages not listed here.")).to_be_visible()
    page.locator("table.letters").get_by_role("link", name=re.compile("^M")).first.click()
    expect(page).to_have_url(re.compile("#/scan/"))
    page.go_back()
    page.get_by_role("button", name="Send all back").click()
    expect(page.get_by_text("27 messages sent back to their stages.")).to_be_visible()
    assert page.evaluate("document.activeElement.textContent").startswith("27 messages"), "the focus is not lost"
    expect(page.get_by_text("2 further messages not listed here.")).to_be_visible()  # all have died again
    page.get_by_role("button", name="Delete all").click()
    expect(page.get_by_role("dialog")).to_contain_text("Delete all 27 messages for good?")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("27 messages deleted.")).to_be_visible()
    expect(page.get_by_text("No dead letters")).to_be_visible()


def test_a_pressed_button_keeps_its_colours_under_the_pointer(page: Page) -> None:
    colours = "b => [getComputedStyle(b).color, getComputedStyle(b).backgroundColor]"
    button = page.get_by_role("button", name="Choose a folder…")
    button.evaluate("b => b.setAttribute('aria-pressed', 'true')")
    ink, before = button.evaluate(colours)
    button.hover()
    after = button.evaluate(colours)
    assert after[0] == ink
    assert after[1] not in ("rgb(246, 248, 250)", "rgb(31, 38, 46)"), "not the pale colour of other buttons"
    assert before != ink


def test_a_link_to_a_deleted_scan_says_so_and_leads_back(page: Page, console: ConsoleProcess) -> None:
    page.goto(f"{console.url}#/scan/{'0' * 32}")
    expect(page.locator("main h1")).to_be_visible()
    page.locator("main").get_by_role("link", name="All scans").click()
    expect(page.get_by_role("heading", name="Newest scans")).to_be_visible()


def test_the_stages_and_columns_are_explained_by_keyboard_too(page: Page) -> None:
    page.get_by_text("What is this?").click()
    expect(page.get_by_text("Marks the tumour in each slice")).to_be_visible()
    column = page.locator("thead abbr").filter(has_text="P(HGG)")
    column.focus()
    content = column.evaluate("element => getComputedStyle(element, '::after').content")
    assert content == "attr(title)" or "probability" in content


def test_an_upload_shows_its_progress_and_can_be_cancelled(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "E1_flair.nii"
    path.write_bytes(bytes(8 * 2**20))
    session = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2**20}
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", slow)
    drop(page, path)
    upload = page.locator(".uploads > li")
    expect(upload).to_contain_text(re.compile(r"uploading, [1-9]\d? % of 8\.0 MiB"))
    upload.get_by_role("button", name="Cancel").click()
    expect(upload).to_have_count(0)
    expect(scan_row(page, "E1_flair")).to_have_count(0)


def test_names_of_files_are_text_and_nothing_else(page: Page, tmp_path: Path) -> None:
    drop(page, good_scan(tmp_path / HOSTILE))
    name = HOSTILE.removesuffix(".nii.gz")
    expect(scan_row(page, name).locator(".c-state")).to_contain_text("answered")
    reversing = tmp_path / "F1_\u202eflair.nii.gz"
    drop(page, good_scan(reversing))
    expect(page.get_by_role("link", name=r"F1_\u{202e}flair", exact=True)).to_be_visible()
    assert page.locator("img").count() == 0
    assert page.title() == "Scans – gliaflow console"


def test_all_can_be_done_with_the_keyboard(page: Page, console: ConsoleProcess) -> None:
    expect(page.locator(".stage")).to_have_count(6)
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        seen.append(focused.inner_text().strip())
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
        if seen[-1] == "Send a phantom LGG":
            break
    expected = ["Skip to the page", "Scans", "Reports", "What is this?", "Choose files…", "Choose a folder…"]
    assert [text for text in seen if text in expected] == expected
    page.keyboard.press("Enter")
    row = page.locator("table.scans tbody tr").filter(has_text="phantom").first
    expect(row.locator(".c-state")).to_contain_text(re.compile("answered|no tumour"))
    row.get_by_role("link").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#/scan/"))


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_narrow_window_needs_no_sideways_scrolling(new_page: NewPage, console: ConsoleProcess, colours: str) -> None:
    page = new_page(console.address, viewport=NARROW, color_scheme=colours)
    for name in PAGES:
        page.goto(f"{console.url}#/{name}")
        expect(page.locator("nav a[aria-current=page]")).to_have_attribute("data-page", name)
        expect(page.locator("main h1")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name


def test_a_report_opens_on_the_page_and_runs_no_script(page: Page, console: ConsoleProcess, tmp_path: Path) -> None:
    page.goto(f"{console.url}#/reports")
    expect(page.get_by_text("No reports in")).to_be_visible()
    folder = console.folder / "reports" / "answers"
    arguments = ["submit", good_scan(tmp_path / "G1_flair.nii.gz"), "--out", folder, "--report"]
    subprocess.run([*GLIAFLOW, *map(str, arguments)], env=environment(tmp_path, "memory://"), check=True)
    report = folder / "report.html"
    report.write_text(report.read_text() + "<script>document.body.replaceChildren('stolen')</script>")
    page.reload()
    page.get_by_role("link", name="answers").click()
    frame = page.frame_locator("iframe.report")
    expect(frame.get_by_text("G1_flair").first).to_be_visible()
    expect(frame.get_by_text("stolen", exact=True)).to_have_count(0)


def test_without_the_token_the_page_says_which_address_to_open(new_page: NewPage, console: ConsoleProcess) -> None:
    page = new_page(console.url)
    expect(page.get_by_text("gliaflow console").first).to_be_visible()
    expect(page.get_by_text("?token=").first).to_be_visible()
    assert page.locator(".stage").count() == 0


def test_after_a_restart_the_page_connects_again_or_says_to_open_the_new_address(
    new_page: NewPage, tmp_path: Path
) -> None:
    process = ConsoleProcess(tmp_path, ("--out", "answers"), {"GLIAFLOW_CONSOLE_TOKEN": TOKEN})
    port = free_port()
    process.start(port)
    page = new_page(f"{process.url}?token={TOKEN}")
    drop(page, good_scan(tmp_path / "H1_flair.nii.gz"))
    expect(scan_row(page, "H1_flair").locator(".c-state")).to_contain_text("answered")
    page.get_by_role("button", name="Send a phantom HGG").click()
    expect(page.locator(".uploads")).to_contain_text("the console draws a head")
    assert process.stop() == 0, process.log
    expect(page.locator("#away")).to_contain_text("The connection to the console is lost.")
    expect(page.locator(".upload-results")).to_contain_text("the console is ending, and has not sent the phantom")
    expect(page.locator(".stage .state")).to_have_text(["unknown"] * 6)
    scan_row(page, "H1_flair").get_by_role("link").click()
    expect(page.locator("main")).to_contain_text("The console does not answer.")
    process.start(port)  # with the operator's token, and its folder of answers
    expect(page.locator("#link-state")).to_have_text("page connected")
    expect(page.get_by_role("heading", name="H1_flair")).to_be_visible()  # by itself
    expect(page.locator(".upload-results")).to_be_hidden()
    expect(page.locator("main")).not_to_contain_text("The console does not answer.")
    page.go_back()
    expect(page.locator("#away")).to_be_hidden()
    expect(scan_row(page, "H1_flair").locator(".c-state")).to_contain_text("answered")
    assert process.stop() == 0, process.log
    del process.settings["GLIAFLOW_CONSOLE_TOKEN"]
    page.get_by_role("link", name="Generators").click()
    expect(page.locator("main [role=alert]")).to_contain_text("The console does not answer.")
    process.start(port)  # with a new token
    expect(page.locator("#away")).to_contain_text("Open the address that “gliaflow console” printed")
    expect(page.locator("main [role=alert]")).to_be_hidden()
    page.get_by_role("link", name="Scans", exact=True).click()
    expect(page.locator(".stage .state")).to_have_text(["unknown"] * 6)
    expect(page.locator("main [role=alert]")).to_be_hidden()
    assert process.stop() == 0, process.log
