"""The page of an evaluation. Every figure here is random: none was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from gliaflow_evaluation.report.page import render, write_report
from gliaflow_evaluation.report.schema import Metrics, write_metrics
from read_page import UNTRUSTED, UNTRUSTED_SHOWN, PageReader, check_stands_alone
from sample_metrics import CLASSES, made_up, nothing_but_arms

PICTURES = 25  # 8 slices; feature maps of 2 classes, real and synthetic; 13 plots


def figures(seed: int = 0) -> dict[str, np.ndarray]:
    """Blobs, in place of slices and of feature maps."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, 240), np.linspace(-1, 1, 240), indexing="ij")
    brain = (x**2 + (y / 0.8) ** 2 < 0.7) * (1 + 0.05 * rng.standard_normal((8, 240, 240)))
    at = rng.uniform(-0.3, 0.3, (2, 8, 1, 1))
    truth = ((x - at[0]) ** 2 + (y - at[1]) ** 2 < 0.03).astype(np.uint8)
    maps = {
        f"acgan/{kind}_{label}": rng.gamma(1, 1, (4, 12, 15, 15)).astype(np.float32)
        for kind in ("real", "synthetic")
        for label in CLASSES
    }
    names = np.array([f"P{number:03d}" for number in range(8)])
    return {"image": brain + truth, "truth": truth, "found": np.roll(truth, 8, axis=1), "names": names, **maps}


def page(values: dict[str, Any], shown: dict[str, np.ndarray], tmp_path: Path) -> str:
    out = tmp_path / "report.html"
    write_report(Metrics.model_validate(values), shown, out)
    return out.read_text(encoding="utf-8")


def text_of(values: dict[str, Any], tmp_path: Path) -> str:
    return PageReader(page(values, {}, tmp_path)).text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(made_up(), figures(), tmp_path_factory.mktemp("whole"))


def test_the_page_stands_alone(whole: str) -> None:
    check_stands_alone(whole)
    assert len(whole) < 3 * 2**20
    read = PageReader(whole)
    assert len(read.all("img")) == PICTURES
    assert {a["href"] for a in read.all("a")} == {f"#{section['id']}" for section in read.all("section")}


def test_the_page_has_every_part(whole: str) -> None:
    text = PageReader(whole).text
    for part in (
        "Synthetic features raised balanced accuracy by 0.06 (95 % interval 0.01–0.11) over the best comparator",
        "61 HGG, 40 LGG; 4540 slices. Grades III, IV count as HGG.",
        "5 folds by patient, stratified by class, split 2 times; seeds 0, 1",
        "the paper’s augmented 0.57 0.38 0.52",
        "wgan-gp with 1158 synthetic samples",
        "Shortcuts that look at no feature",
        "HGG, held-out real",
        "All intervals include chance",
        "gliaflow evaluate cohort --out report --generator acgan --generator wgan-gp",
        "torch 2.8.0",
    ):
        assert part in text
    assert text.index("raised balanced accuracy") < text.index("Does a classifier"), "the verdict comes first"


def test_each_patient_is_listed_with_class_dice_and_answers(tmp_path: Path) -> None:
    values = nothing_but_arms() | {"table2": made_up()["table2"]}
    values["table2"]["test_patients"]["per_patient"] = [{"patient": "P000", "fold": 0, "dice": 0.734}]
    right, wrong = {"logit": 1.0, "probability": 0.731}, {"logit": -1.0, "probability": 0.269}
    unknown = {"logit": None, "probability": None}
    values["patients"] = [
        {"patient": "P000", "fold": 0, "label": "HGG", "answers": {"real": right, "weights": wrong}},
        {"patient": "P001", "fold": 1, "label": "LGG", "answers": {"real": unknown, "weights": wrong}},
    ]
    text = text_of(values, tmp_path)
    assert "P(HGG) real features alone P(HGG) class weights P000 HGG 0.73 0.73 ✗ 0.27 P001 LGG – – 0.27" in text
    assert "Dice is the patient’s" in text


def test_patients_of_a_run_that_graded_none_have_their_dice(tmp_path: Path) -> None:
    text = text_of(nothing_but_arms() | {"table2": made_up()["table2"]}, tmp_path)
    assert "101 test patients" in text
    assert "patient Dice P000" in text


def test_a_slice_has_its_own_dice_and_its_patients(whole: str) -> None:
    shown, text = figures(), PageReader(whole).text
    both = int((shown["truth"][3] & shown["found"][3]).sum())
    dice = 2 * both / int(shown["truth"][3].sum() + shown["found"][3].sum())
    of_patient = made_up()["table2"]["test_patients"]["per_patient"][3]["dice"]
    assert f"P003 Dice of this slice {dice:.2f} Dice of the patient {of_patient:.2f}" in text
    assert "the patient’s left (L) is at the right of the picture" in text


def test_the_confusion_matrix_counts_patients_by_true_and_graded_class(whole: str) -> None:
    assert "graded HGG graded LGG true HGG 40.5 20.5 true LGG 12.0 28.0" in PageReader(whole).text


def test_a_distance_far_beyond_the_floor_is_commented_and_leaves_the_columns_digits_alone(tmp_path: Path) -> None:
    generator = json.loads(json.dumps(made_up()["gan"]["acgan"])) | {"history": []}
    generator["distances"]["LGG"]["kid"] = {"synthetic": 67719.2, "floor": 0.57}
    generator["distances"]["HGG"]["kid"] = {"synthetic": 1.234, "floor": 0.456}
    text = text_of(nothing_but_arms() | {"gan": {"acgan": generator}}, tmp_path)
    assert "off the scale 68,000" in text
    assert "1.23" in text
    assert "0.46" in text
    assert "more than 20 times the floor" in text


def test_parts_that_were_not_measured_have_a_line_each(tmp_path: Path) -> None:
    text = text_of(nothing_but_arms(), tmp_path)
    for line in (
        "No generator was requested",
        "Not tried in this run",
        "No scores by patient were kept.",
        "Neither ROC curves nor confusion matrices were measured in this run.",
        "No feature maps were kept.",
        "Segmentation was not measured in this run.",
        "No learning curves of the U-Net were kept.",
        "No example slices were kept.",
        "Calibration was not measured in this run.",
        "No control with shuffled labels was run.",
    ):
        assert line in text
    empty = nothing_but_arms() | {"table3": None, "comparators": {}, "best_comparator": None}
    assert "Grading was not measured in this run." in text_of(empty, tmp_path)
    assert "No arms were compared in this run." in text_of(empty, tmp_path)


def test_warnings_come_before_everything_else(tmp_path: Path) -> None:
    text = text_of(nothing_but_arms(), tmp_path)
    assert text.index("a leak from training to test is not ruled out") < text.index("Does a classifier")


def test_scores_without_means_or_intervals_are_drawn(tmp_path: Path) -> None:
    unknown = {"mean": None, "ci95": None, "n": 0}

    def forget(values: Any) -> Any:
        if isinstance(values, dict):
            return unknown if set(values) == set(unknown) else {key: forget(each) for key, each in values.items()}
        return [forget(each) for each in values] if isinstance(values, list) else values

    text = PageReader(page(forget(made_up()), figures(), tmp_path)).text
    assert "Whether synthetic features help was not measured." in text
    assert "nan" not in text.lower()


def test_the_task_of_slices_with_tumour_is_not_called_grading(tmp_path: Path) -> None:
    values = json.loads(json.dumps(nothing_but_arms()).replace("HGG", "tumour").replace("LGG", "none"))
    values["made"] |= {"task": "tumour"}
    values["made"]["cohort"] |= {"patients": {"not known": 71}, "high": []}
    text = text_of(values, tmp_path)
    assert "this says nothing about grades" in text
    assert "71 not known" in text
    assert "the paper’s augmented" not in text
    assert "Grading" not in text


def test_an_arm_whose_count_validation_chose_is_marked(tmp_path: Path) -> None:
    values = nothing_but_arms() | {"augmented_minus_best": made_up()["augmented_minus_best"], "augmented_arm": "acgan"}
    values["comparators"]["acgan"] = made_up()["comparators"]["acgan@400"] | {"arm": "acgan"}
    text = text_of(values, tmp_path)
    assert "Judged: acgan, with as many samples as validation patients chose." in text
    assert "acgan judged number of samples chosen on validation patients" in text


def test_copies_are_reported(tmp_path: Path) -> None:
    generators = json.loads(json.dumps(made_up()["gan"]))
    for generator in generators.values():
        generator["history"] = []
    assert "copying" not in page(nothing_but_arms() | {"gan": generators}, {}, tmp_path)
    generators["acgan"]["distances"]["LGG"]["nearest"] = {"synthetic": 0.4, "floor": 3.4}
    text = text_of(nothing_but_arms() | {"gan": generators}, tmp_path)
    assert "⚠ acgan, LGG:" in text
    assert "The generator may be copying patients." in text


def test_names_are_untrusted_text(tmp_path: Path) -> None:
    text = json.dumps(made_up())
    for name in ("wgan-gp", "P008", "made-up"):
        text = text.replace(name, json.dumps(UNTRUSTED)[1:-1])
    values = json.loads(text)
    values["made"] |= dict.fromkeys(("command", "device", "tap"), UNTRUSTED) | {"versions": {UNTRUSTED: UNTRUSTED}}
    values["made"]["profile"] |= {UNTRUSTED: UNTRUSTED}
    values["made"]["cohort"] |= {"layout": UNTRUSTED, "high": [UNTRUSTED]}
    written = page(values, figures() | {"names": np.array([UNTRUSTED] * 8)}, tmp_path)
    read = PageReader(written)
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert "<img src=x" not in written
    assert UNTRUSTED_SHOWN in read.raw
    assert len(read.all("img")) == PICTURES


def test_the_same_figures_make_the_same_page(whole: str, tmp_path: Path) -> None:
    write_metrics(Metrics.model_validate(made_up()), tmp_path / "metrics.json")
    np.savez_compressed(tmp_path / "figures.npz", **figures())
    assert render(tmp_path).read_text(encoding="utf-8") == whole


def test_the_page_can_be_drawn_again_from_the_command_line(tmp_path: Path) -> None:
    write_metrics(Metrics.model_validate(nothing_but_arms()), tmp_path / "metrics.json")
    command = [sys.executable, "-m", "gliaflow_evaluation.report", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == str(tmp_path / "report.html")
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_needs_no_torch_and_matplotlib_only_to_draw() -> None:
    code = "import sys, gliaflow_evaluation.report.page; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
