"""The page of a scan and the page of the generators, in a browser."""

from __future__ import annotations

import gzip
import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from browser import SWITCHES, WAIT_MS, ConsoleProcess
from matplotlib.image import imread
from numpy.typing import NDArray
from playwright.sync_api import Browser, Locator, Page, Route, expect
from requirements import require_program

pytestmark = pytest.mark.slow
ORDERS = ("RAS", "LAS", "LPS", "PSR")  # how the voxels are stored: three axial orders and a sagittal one
SHAPE, SPACING = (48, 56, 14), (4.0, 4.0, 6.0)


def left_lesion(order: str) -> bytes:
    """A NIfTI file of an ellipsoid head with a bright lesion at the patient's left, in front, above the middle."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")  # to the right, front and head
    head = (x**2 + y**2 + z**2 < 0.8) * np.random.default_rng(0).normal(300, 15, SHAPE)
    head += 250.0 * ((x + 0.35) ** 2 + (y - 0.25) ** 2 + (z - 0.15) ** 2 < 0.06)
    image = nib.Nifti1Image(head.astype(np.int16), np.diag([*SPACING, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(order)
    )
    return bytes(image.as_reoriented(turn).to_bytes())


@dataclass(frozen=True)
class Sent:
    """A scan that the console has answered: its ``id``, and its ``details`` by ``GET /api/scans/{id}``."""

    id: str
    details: dict[str, Any]

    @property
    def strongest(self) -> int:
        """The slice that speaks most for the grade."""
        best = max if self.details["grade"] == "HGG" else min
        z, _ = best(self.details["slice_p"], key=lambda pair: pair[1])
        return int(z)

    @property
    def address(self) -> str:
        return f"#/scan/{self.id}"


@pytest.fixture(scope="module")
def sent(console: ConsoleProcess) -> dict[str, Sent]:
    """The same head, sent once in each order of storing."""
    answered = {}
    for order in ORDERS:
        name = f"{order}_flair"
        answer = json.loads(console.request("POST", f"api/scans?name={name}.nii", left_lesion(order)))
        row = console.wait_row(name)
        assert row["status"] == "ok", row["reason"]
        answered[order] = Sent(answer["id"], console.get(f"api/scans/{answer['id']}"))
    return answered


@pytest.fixture(scope="module")
def no_webgl(chromium: Browser) -> Iterator[Browser]:
    """A browser on a PC whose graphics card cannot draw with WebGL2."""
    switches = [each for each in SWITCHES if each != "--enable-unsafe-swiftshader"]
    browser = chromium.browser_type.launch(
        executable_path=require_program("chromium"), args=[*switches, "--disable-software-rasterizer"]
    )
    yield browser
    browser.close()


@pytest.fixture
def plain_page(no_webgl: Browser, console: ConsoleProcess) -> Iterator[Page]:
    """The console's first page in that browser."""
    context = no_webgl.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    page.goto(console.address)
    yield page
    context.close()


def show(page: Page, scan: Sent) -> Locator:
    """Open the scan's page. Returns the canvas of its viewer, drawn."""
    page.evaluate("(address) => { location.hash = address }", scan.address)
    canvas = page.locator(".viewer[data-state=drawn] canvas")
    expect(canvas).to_be_visible(timeout=120_000)  # WebGL in software takes its time
    return canvas


def pixels(canvas: Locator) -> NDArray[np.float64]:
    """The picture [height, width, 3], from 0 to 1."""
    return np.asarray(imread(io.BytesIO(canvas.screenshot())), dtype=float)[..., :3]


def amber(picture: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the picture shows the mask: the scan is grey, and the crosshair is blue."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red - blue > 0.15) & (red > green)


def mask_slice(console: ConsoleProcess, scan: Sent, z: int) -> NDArray[np.bool_]:
    """Slice z of the mask that the console offers for download, in the radiological convention."""
    data = console.request("GET", f"api/scans/{scan.id}/mask.nii.gz")
    mask = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(data)))
    return np.asarray(mask.dataobj)[::-1, ::-1, z].T > 0


@pytest.mark.parametrize("order", ORDERS)
def test_a_lesion_at_the_left_is_at_the_right_of_the_picture(
    order: str, plain_page: Page, console: ConsoleProcess, sent: dict[str, Sent]
) -> None:
    """For each order in which voxels are stored. The picture is the mask of the download, turned, and nothing else."""
    scan = sent[order]
    shown = amber(pixels(show(plain_page, scan)))
    _, columns = np.nonzero(shown)
    assert columns.mean() > shown.shape[1] / 2
    expected = mask_slice(console, scan, scan.strongest)
    rows, columns = (
        (np.arange(size) * mask_size // size) for size, mask_size in zip(shown.shape, expected.shape, strict=True)
    )
    expected = expected[np.ix_(rows, columns)]
    assert (shown & expected).sum() / (shown | expected).sum() > 0.8
    right, left = (plain_page.locator(f".side-{side}").bounding_box() for side in "RL")
    assert right is not None
    assert left is not None
    assert right["x"] < left["x"]


def test_without_webgl_the_page_shows_axial_slices_and_says_so(plain_page: Page, sent: dict[str, Sent]) -> None:
    canvas = show(plain_page, sent["RAS"])
    expect(plain_page.get_by_text("Three planes need WebGL2, and this browser has no WebGL2")).to_be_visible()
    assert amber(pixels(canvas)).any()
    plain_page.get_by_label("Mask opacity").fill("0")
    assert not amber(pixels(canvas)).any()
    slider = plain_page.get_by_label("Slice", exact=True)
    canvas.hover()  # the wheel needs no click
    plain_page.mouse.wheel(0, 100)
    expect(slider).to_have_value(str(sent["RAS"].strongest - 1))
    canvas.focus()
    canvas.press("ArrowUp")
    expect(slider).to_have_value(str(sent["RAS"].strongest))


def test_the_page_says_which_slice_speaks_most_for_the_grade(plain_page: Page, sent: dict[str, Sent]) -> None:
    scan = sent["RAS"]
    grade, z = scan.details["grade"], scan.strongest
    show(plain_page, scan)
    slider = plain_page.get_by_label("Slice", exact=True)
    expect(plain_page.locator(".answer")).to_contain_text(grade)
    expect(plain_page.locator(".clear-slice")).to_contain_text(f"Slice {z} (0 to 13) speaks most for {grade}")
    expect(plain_page.locator(".curve")).to_contain_text(f"slice {z}: most for {grade}")
    expect(slider).to_have_value(str(z))  # the page opens there
    slider.fill("0")
    expect(plain_page.locator(".slice-text")).to_contain_text("Slice 0 (0 to 13)")
    plain_page.get_by_role("button", name=f"Show slice {z}").click()
    expect(slider).to_have_value(str(z))


def test_a_click_on_the_curve_goes_to_the_slice(plain_page: Page, sent: dict[str, Sent]) -> None:
    show(plain_page, sent["RAS"])
    curve, slider = (
        plain_page.get_by_role("slider", name="P(HGG) by slice"),
        plain_page.get_by_label("Slice", exact=True),
    )
    dots = plain_page.locator(".curve .dot")
    expect(dots).to_have_count(len(sent["RAS"].details["slice_p"]))
    for n, (z, _) in enumerate(sent["RAS"].details["slice_p"]):
        dots.nth(n).click(force=True)  # the cursor's line may be over it
        expect(slider).to_have_value(str(z))
        expect(plain_page.locator(".slice-text")).to_contain_text(f"Slice {z} (0 to 13): P(HGG)")
    curve.press("Home")
    expect(slider).to_have_value("0")
    curve.press("ArrowRight")
    expect(curve).to_have_attribute("aria-valuetext", "Slice 1 (0 to 13): no tumour, so it has no part in the grade")


def test_three_planes_show_the_mask_at_the_same_side(
    page: Page, console: ConsoleProcess, sent: dict[str, Sent]
) -> None:
    """NiiVue: a lesion at the left is at the right of the axial plane, opacity 0 hides the mask, keys change the slice.

    NiiVue requests nothing from other hosts, and its WebGL context, of which a browser allows 16, is freed.
    """
    scan, hosts = sent["LPS"], set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    canvas = show(page, scan)
    assert hosts <= {urlsplit(console.url).netloc, ""}  # "": data in NiiVue's script
    picture = pixels(canvas)
    axial = amber(picture[:, : int(0.62 * picture.shape[1])])
    rows, columns = np.nonzero(axial)
    assert columns.mean() > axial.shape[1] / 2  # left
    assert rows.mean() < axial.shape[0] / 2  # in front
    page.get_by_label("Mask opacity").fill("0")
    assert not amber(pixels(canvas)).any()
    canvas.hover(
        position={"x": 0.3 * picture.shape[1], "y": 0.5 * picture.shape[0]}
    )  # the axial plane, without a click
    page.mouse.wheel(0, 100)
    expect(page.get_by_label("Slice", exact=True)).to_have_value(str(scan.strongest - 1))
    page.mouse.wheel(0, -100)
    expect(page.get_by_label("Slice", exact=True)).to_have_value(str(scan.strongest))
    canvas.focus()
    canvas.press("ArrowUp")
    expect(page.get_by_label("Slice", exact=True)).to_have_value(str(scan.strongest + 1))
    canvas.click(position={"x": 0.85 * picture.shape[1], "y": 0.25 * picture.shape[0]})  # in the coronal plane
    expect(page.get_by_label("Slice", exact=True)).not_to_have_value(str(scan.strongest + 1))
    planes = canvas.element_handle()
    page.get_by_role("button", name="Axial only").click()
    expect(page.locator(".side-R")).to_be_visible()
    assert planes.evaluate("(canvas) => canvas.getContext('webgl2').isContextLost()")
    page.get_by_role("button", name="Axial only").click()
    expect(page.locator(".side-R")).to_have_count(0)
    show(page, scan).evaluate("(it) => it.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()")
    expect(page.get_by_text("the graphics card dropped the picture")).to_be_visible()
    expect(page.locator(".side-R")).to_be_visible()


def test_the_mask_and_the_answer_can_be_downloaded(
    plain_page: Page, console: ConsoleProcess, sent: dict[str, Sent]
) -> None:
    scan = sent["LAS"]
    show(plain_page, scan)
    for link, path in (("Mask (NIfTI)", "mask.nii.gz"), ("Answer (JSON)", "row.json")):
        with plain_page.expect_download() as download:
            plain_page.get_by_role("link", name=link).click()
        assert Path(download.value.path()).read_bytes() == console.request("GET", f"api/scans/{scan.id}/{path}")


def test_feature_maps_of_the_slice_at_each_tap(plain_page: Page, sent: dict[str, Sent]) -> None:
    scan = sent["RAS"]
    show(plain_page, scan)
    plain_page.get_by_role("button", name=f"Show the maps of slice {scan.strongest}").click()
    maps = plain_page.locator(".maps li")
    expect(maps.first).to_be_visible()
    assert pixels(maps.first.locator("canvas")).max() > 0.5
    expect(plain_page.get_by_label("Tap")).to_have_value(scan.details["tap"])
    plain_page.get_by_label("Tap").select_option("enc5")
    expect(plain_page.get_by_text(f"Slice {scan.strongest}, tap enc5:")).to_be_visible()
    plain_page.get_by_label("Slice", exact=True).fill("0")
    expect(
        plain_page.get_by_text(f"These are the maps of slice {scan.strongest}. The page shows slice 0")
    ).to_be_visible()
    plain_page.get_by_label("Slice", exact=True).fill(str(scan.strongest))
    expect(plain_page.get_by_text("These are the maps of slice")).to_be_hidden()


def test_two_generators_side_by_side(plain_page: Page, console: ConsoleProcess, sent: dict[str, Sent]) -> None:
    first, second, *_ = (each["name"] for each in console.get("api/generators")["generators"])
    plain_page.get_by_role("link", name="Generators").click()
    grades = {each.details["grade"] for each in sent.values()}  # whose real features the page can show
    plain_page.get_by_label("Grade").select_option(min(grades))
    plain_page.get_by_label("Count").fill("8")
    plain_page.get_by_role("button", name="Draw features").click()
    for name in (first, second):
        panel = plain_page.get_by_role("region", name=f"Synthetic features of {name}")
        expect(panel.locator(".maps canvas").first).to_be_visible()
        expect(panel).to_contain_text("the critic accepted")
    cell = plain_page.locator(".distances td", has_text="%").first.inner_text()
    share, accepted, all_drawn = (int(number) for number in re.findall(r"\d+", cell))
    assert share == round(100 * accepted / all_drawn), "what was accepted and drawn, not the count of 8"
    for name in (first, second):
        expect(plain_page.locator(".distances thead")).to_contain_text(name)
    expect(plain_page.get_by_role("region", name="Real features").get_by_role("link")).to_have_attribute(
        "href", re.compile("#/scan/")
    )
    with plain_page.expect_download() as download:
        panel.get_by_role("button", name="Download all (.npz)").click()
    with np.load(download.value.path()) as file:
        assert len(file["features"]) == 8


def test_the_answer_appears_on_the_open_page(plain_page: Page, console: ConsoleProcess) -> None:
    answer = json.loads(console.request("POST", "api/scans?name=open_flair.nii", left_lesion("RAS")))
    scan = Sent(answer["id"], {})
    show(plain_page, scan)
    expect(plain_page.get_by_role("heading", name="open_flair")).to_be_visible()
    expect(plain_page.locator(".curve .dot").first).to_be_visible()
    console.request("DELETE", f"api/scans/{scan.id}")
    expect(plain_page.get_by_text("The console no longer has this scan")).to_be_visible()


def changed_details(page: Page, scan: Sent, **changes: Any) -> None:
    """The page gets these details of a scan in place of the console's."""
    page.route(
        re.compile(f"api/scans/{scan.id}$"), lambda route: route.fulfill(json={**scan.details, **changes}, status=200)
    )


def test_an_answer_that_comes_while_the_page_loads_is_shown(plain_page: Page, console: ConsoleProcess) -> None:
    """The first details are out of date when they arrive, and the event came before them."""
    expect(plain_page.locator("#link-state[data-state=live]")).to_be_visible()  # the stream of events is open
    expect(plain_page.locator(".stage").first).to_be_visible()
    scan = Sent(json.loads(console.request("POST", "api/scans?name=late_flair.nii", left_lesion("RAS")))["id"], {})
    held: list[str] = []

    def hold(route: Route) -> None:
        if held:
            route.continue_()
            return
        details = {**console.get(f"api/scans/{scan.id}"), "status": "working", "grade": None, "slice_p": []}
        held.append(console.wait_row("late_flair")["status"])
        time.sleep(2)  # the event comes at most a second after the answer
        route.fulfill(json=details, status=200)

    plain_page.route(re.compile(f"api/scans/{scan.id}$"), hold)
    plain_page.evaluate("(address) => { location.hash = address }", scan.address)
    expect(plain_page.locator(".answer .chip")).to_be_visible()
    assert held == ["ok"]


def test_a_page_that_the_user_left_while_it_loaded_changes_nothing(plain_page: Page, sent: dict[str, Sent]) -> None:
    scan = sent["RAS"]
    waiting: list[Route] = []
    plain_page.route(re.compile(f"api/scans/{scan.id}$"), lambda route: waiting.append(route))
    with plain_page.expect_request(re.compile(f"api/scans/{scan.id}$")):
        plain_page.evaluate("(address) => { location.hash = address }", scan.address)
    plain_page.evaluate("location.hash = '#/reports'")
    expect(plain_page).to_have_title(re.compile("Reports"))
    with plain_page.expect_response(re.compile(f"api/scans/{scan.id}$")):
        waiting[0].fulfill(json=scan.details, status=200)
    plain_page.wait_for_timeout(200)
    expect(plain_page).to_have_title(re.compile("Reports"))


def test_the_curve_of_an_answer_without_mask_has_all_slices_with_tumour(
    plain_page: Page, sent: dict[str, Sent]
) -> None:
    """Another client's answer, whose mask the console no longer has. What is not known is not said."""
    scan = sent["RAS"]
    unknown = {"depth": None, "shape": None, "spacing": None, "slice_ml": [], "has_image": False, "has_mask": False}
    changed_details(plain_page, scan, own=False, **unknown)
    plain_page.evaluate("(address) => { location.hash = address }", scan.address)
    slices = [z for z, _ in scan.details["slice_p"]]
    expect(plain_page.locator(".curve")).to_have_attribute("aria-valuemax", str(max(slices)))
    width = plain_page.locator(".curve").bounding_box()
    dots = [dot.bounding_box() for dot in plain_page.locator(".curve .dot").all()]
    assert width is not None
    assert len(dots) == len(slices)
    assert all(dot is not None and dot["x"] + dot["width"] <= width["x"] + width["width"] for dot in dots)
    expect(plain_page.locator(".clear-slice")).not_to_contain_text("ml")
    plain_page.locator(".curve").press("Home")
    expect(plain_page.locator(".slice-text")).to_have_text("Slice 0: no tumour, so it has no part in the grade")


def test_the_label_on_the_curve_covers_no_mark(plain_page: Page, sent: dict[str, Sent]) -> None:
    scan = sent["RAS"]
    points = [[z, 0.52 - 0.1 * (z == 13)] for z in range(3, 14)]
    changed_details(plain_page, scan, slice_p=points, grade="LGG", p_hgg=0.499, slices=12)
    show(plain_page, scan)
    expect(plain_page.locator(".answer")).to_contain_text("P(HGG) 0.499")  # 0.50 would not agree with LGG
    expect(plain_page.locator(".answer")).to_contain_text("2 slices show no head.")
    label = plain_page.locator(".curve .label text").bounding_box()
    marks = [mark.bounding_box() for mark in plain_page.locator(".curve .dot, .curve .ring").all()]
    assert label is not None
    assert len(marks) == len(points) + 1
    assert all(mark is not None and mark["y"] > label["y"] + label["height"] for mark in marks)
    plot = plain_page.locator(".curve").bounding_box()
    assert plot is not None
    assert label["x"] >= plot["x"]
    assert label["x"] + label["width"] <= plot["x"] + plot["width"]


def test_a_failed_scan_has_its_reason_once_and_no_slices(plain_page: Page, console: ConsoleProcess) -> None:
    answer = json.loads(console.request("POST", "api/scans?name=cut_flair.nii", left_lesion("RAS")[:5000]))
    row = console.wait_row("cut_flair")
    assert row["status"] == "failed"
    plain_page.evaluate("(address) => { location.hash = address }", f"#/scan/{answer['id']}")
    expect(plain_page.locator("main").get_by_text(row["reason"])).to_have_count(1)
    for kind in ("canvas", ".viewer", "input[type=range]", ".curve"):
        expect(plain_page.locator(f"main {kind}")).to_have_count(0)
    expect(plain_page.get_by_role("link", name="Answer (JSON)")).to_be_visible()


@pytest.mark.parametrize(("drawn", "verdict"), [("HGG", "right"), ("LGG", "wrong")])
def test_a_phantom_has_its_true_grade_beside_the_answer(
    drawn: str, verdict: str, plain_page: Page, sent: dict[str, Sent]
) -> None:
    changed_details(plain_page, sent["RAS"], drawn=drawn, grade="HGG", p_hgg=0.7)
    plain_page.evaluate("(address) => { location.hash = address }", sent["RAS"].address)
    expect(plain_page.locator(".answer")).to_contain_text(
        f"tumour ({drawn}). The pipeline says HGG, which is {verdict}"
    )
