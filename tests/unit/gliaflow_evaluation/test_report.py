"""The evaluation's metrics.json and page. Every figure here is drawn at random: none was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gliaflow_evaluation.report import schema as metrics_schema
from gliaflow_evaluation.report.page import render, write_report
from gliaflow_evaluation.report.schema import SCHEMA, Metrics, MetricsError, Score, read_metrics, write_metrics
from gliaflow_evaluation.report.verdict import changed, interval, number, told, verdict

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"
CLASSES = ("HGG", "LGG")
ARMS = ("weights", "oversample", "smote", "gaussian", "mixup", "threshold", "linear", "size", "slices")
COUNTS = (100, 400, 1158)


def made_up(gain: tuple[float, float, float] = (0.06, 0.01, 0.11), seed: int = 0) -> dict[str, Any]:
    """What a whole evaluation writes, of random figures; ``gain``: of the verdict, with its interval."""
    rng = np.random.default_rng(seed)

    def score(middle: float, half: float = 0.06, n: int = 101) -> dict[str, Any]:
        mean = float(middle + 0.25 * half * rng.standard_normal())
        return {"mean": mean, "ci95": [mean - half, mean + 1.1 * half], "n": n}

    def differences(middle: float = 0.0) -> dict[str, Any]:
        return {"balanced_accuracy": score(middle), "auc": score(middle), "brier": score(-middle / 3, 0.02)}

    def row(arm: str, skill: float) -> dict[str, Any]:
        return {
            "arm": arm,
            "slices": {"HGG": score(skill + 0.1, 0.03, 2712), "LGG": score(skill - 0.1, 0.04, 1828)}
            | {"total": score(skill, 0.03, 4540)},
            "balanced_accuracy": score(skill),
            "auc": score(skill + 0.05),
            "recall": {"HGG": score(skill + 0.1), "LGG": score(skill - 0.1, 0.1)},
            "brier": score(0.22, 0.02),
        }

    def epochs(number: int, **ends: tuple[float, float]) -> list[dict[str, float]]:
        fall = np.exp(-np.arange(number) / number * 4)
        noisy = {
            key: end + (start - end) * fall + 0.01 * rng.standard_normal(number) for key, (start, end) in ends.items()
        }
        return [{key: float(values[epoch]) for key, values in noisy.items()} for epoch in range(number)]

    skill = dict(zip(ARMS, rng.uniform(0.55, 0.64, len(ARMS)), strict=True)) | {"size": 0.52, "slices": 0.5}
    skill |= {f"{name}@{count}": 0.66 - 0.0001 * abs(count - 400) for name in ("acgan", "wgan-gp") for count in COUNTS}
    arms = {"real": row("real", 0.6)} | {
        arm: row(arm, at) | {"difference": differences(at - 0.6)} for arm, at in skill.items()
    }
    segmented = {"soft_dice_loss": score(0.2, 0.01), "hard_dice": score(0.8, 0.02), "iou": score(0.72, 0.02)}
    dice = rng.beta(8, 2, 101)
    verdict_on = differences() | {"balanced_accuracy": {"mean": gain[0], "ci95": list(gain[1:]), "n": 101}}
    pairs = {
        key: {"synthetic": float(rng.uniform(0.3, 1)), "floor": float(rng.uniform(0.2, 0.6))}
        for key in ("frechet", "kid", "precision", "recall", "density", "coverage")
    } | {"nearest": {"synthetic_to_train": 3.1, "held_out_to_train": 3.4}}
    gan = {
        "options": {"ngf": 64},
        "accuracy_critic": score(0.82, 0.02, 4800),
        "accuracy_unseen": score(0.7, 0.02, 4800),
        "accuracy_unseen_real": score(0.68, 0.02, 4800),
        "accuracy_others": score(0.64, 0.02, 4800),
        "accuracy_others_real": score(0.66, 0.02, 4800),
        "per_class": dict.fromkeys(CLASSES, pairs),
        "cas": {"balanced_accuracy": score(0.57), "auc": score(0.6)},
        "history": [
            epochs(30, loss_d=(2, 0.8), loss_g=(1, 2.5), accuracy_real=(0.5, 0.95), accuracy_fake=(0.5, 0.9))
            for _ in range(5)
        ],
    }

    def bins() -> list[dict[str, Any]]:
        off = rng.uniform(-0.1, 0.1, 5)
        centres = np.linspace(0.1, 0.9, 5)
        return [{"predicted": float(p), "observed": float(p + d), "n": 20} for p, d in zip(centres, off, strict=True)]

    return {
        "schema": SCHEMA,
        "made": {
            "command": "gliaflow evaluate cohort --out report --generator acgan --generator wgan-gp",
            "date": "2026-01-02T03:04:05+00:00",
            "seconds": 4321.0,
            "versions": {"python": "3.11.7", "gliaflow": "0.1.0", "torch": "2.8.0"},
            "profile": {"width": 16},
            "device": "cpu",
            "cohort": {
                "folder": "made-up",
                "layout": "brats",
                "patients": {"HGG": 61, "LGG": 40},
                "slices": 4540,
                "high": ["III", "IV"],
            },
            "protocol": {"name": "grouped", "folds": 5, "repeats": 2, "seeds": [0, 1]},
            "task": "grade",
            "classes": list(CLASSES),
            "tap": "enc5",
            "shape": [1024, 15, 15],
            "generators": ["acgan", "wgan-gp"],
            "counts": [0, *COUNTS],
            "init": None,
        },
        "table2": {
            **dict.fromkeys(("train", "validation", "test"), segmented),
            "test_patients": {
                "dice": score(0.8, 0.03),
                "dice_median": 0.82,
                "per_patient": [{"patient": f"P{i:03d}", "fold": i % 5, "dice": float(d)} for i, d in enumerate(dice)],
            },
        },
        "table3": {"baseline": row("real", 0.6), "augmented": row("acgan@400", 0.66), "difference": differences(0.06)}
        | {"beyond_line": differences(0.01)},
        "comparators": arms,
        "best_comparator": "weights",
        "augmented_arm": "acgan@400",
        "augmented_chosen_on": "validation",
        "augmented_minus_best": verdict_on,
        "counts": {
            name: [
                {key: arms[f"{name}@{count}"][key] for key in ("balanced_accuracy", "auc", "difference")}
                | {"count": count}
                for count in COUNTS
            ]
            for name in ("acgan", "wgan-gp")
        },
        "scarce": [
            {
                "rare_patients": count,
                "arms": {
                    arm: {"balanced_accuracy": score(at + count / 400), "auc": score(at + count / 400)}
                    for arm, at in (("real", 0.5), ("weights", 0.52), ("acgan@400", 0.54))
                },
                "augmented_arm": "acgan@400",
                "best_comparator": "weights",
                "augmented_minus_best": differences(0.02),
            }
            for count in (5, 10, 20)
        ],
        "gan": {"acgan": gan, "wgan-gp": gan},
        "control": {
            "shuffled_labels": True,
            "balanced_accuracy": {"mean": 0.51, "ci95": [0.44, 0.58], "n": 101},
            "auc": {"mean": 0.49, "ci95": [0.41, 0.57], "n": 101},
            "arms": {"acgan": {"balanced_accuracy": score(0.5), "auc": score(0.5)}},
            "chance_inside": True,
        },
        "calibration": {arm: bins() for arm in ("real", "weights", "acgan@400")},
        "learning": {"unet": [epochs(24, loss=(0.9, 0.15), val_dice=(0.2, 0.8), val_iou=(0.1, 0.7)) for _ in range(5)]},
    }


def nothing_but_arms() -> dict[str, Any]:
    """An evaluation that was asked for nothing but the arms without synthetic features."""
    whole = made_up()
    arms = {arm: row for arm, row in whole["comparators"].items() if "@" not in arm}
    table3 = whole["table3"] | {"augmented": None, "difference": None, "beyond_line": None}
    none = dict.fromkeys(("table2", "augmented_arm", "augmented_minus_best", "scarce", "control", "learning"))
    return whole | none | {"comparators": arms, "table3": table3, "counts": {}, "gan": {}, "calibration": {}}


def pictures(seed: int = 0) -> dict[str, np.ndarray]:
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


def page(values: dict[str, Any], figures: dict[str, np.ndarray], tmp_path: Path) -> str:
    out = tmp_path / "report.html"
    write_report(Metrics.model_validate(values), figures, out)
    return out.read_text(encoding="utf-8")


def changed_at(path: str, value: Any) -> dict[str, Any]:
    """A whole evaluation with another value at ``path``, its keys apart by dots."""
    values: Any = json.loads(json.dumps(made_up()))
    *way, last = path.split(".")
    at = values
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    return values  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(made_up(), pictures(), tmp_path_factory.mktemp("whole"))


# metrics.json


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    metrics = Metrics.model_validate(made_up())
    write_metrics(metrics, tmp_path / "metrics.json")
    assert read_metrics(tmp_path / "metrics.json") == metrics
    assert json.loads((tmp_path / "metrics.json").read_text())["schema"] == "gliaflow-evaluation/1"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_what_could_not_be_measured_is_null_and_numpys_numbers_are_taken() -> None:
    score = Score(mean=np.float32("nan"), ci95=np.array([0.1, np.nan]), n=np.int64(3))
    assert score == Score(mean=None, ci95=None, n=3)
    assert Score(mean=np.float32(0.5), ci95=np.array([0.25, 0.75]), n=3).ci95 == (0.25, 0.75)
    epochs = [[{"loss": float("nan"), "val_dice": 0.5}]]
    learning = Metrics.model_validate(changed_at("learning.unet", epochs)).learning
    assert learning is not None
    assert learning.unet == [[{"loss": None, "val_dice": 0.5}]]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("schema", "gliaflow-evaluation/2", "schema"),
        ("control.auc.ci95", [0.6, 0.4], "control.auc.ci95"),
        ("control.auc.mean", float("inf"), "control.auc.mean"),
        ("table2.test_patients.per_patient.0.dice", 1.2, "table2.test_patients.per_patient.0.dice"),
        ("made.colour", "blue", "made.colour"),
        ("best_comparator", "magic", "magic"),
    ],
)
def test_a_file_that_does_not_follow_the_schema_is_refused_by_field(
    path: str, value: Any, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(changed_at(path, value)))
    with pytest.raises(MetricsError, match=told) as refused:
        read_metrics(file)
    assert str(file) in str(refused.value)


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    wrong = Metrics.model_validate(made_up()).model_copy(update={"best_comparator": "magic"})
    with pytest.raises(MetricsError, match="magic"):
        write_metrics(wrong, tmp_path / "metrics.json")
    assert not list(tmp_path.iterdir())


def test_every_key_is_documented() -> None:
    """``python -m gliaflow_evaluation.report.schema`` prints the tables."""
    parts = metrics_schema.tables().split("\n### ")
    assert len(parts) == 1 + len(metrics_schema.json_schema()["$defs"])
    for part in parts:
        assert part.strip() in DOCS.read_text(encoding="utf-8"), f"docs/evaluation.md lacks or alters: {part[:40]}"


# the verdict


@pytest.mark.parametrize(
    ("gain", "kind", "sentence"),
    [
        ((0.06, 0.01, 0.11), "gain", "raised balanced accuracy by 0.06 (95 % interval 0.01–0.11) over the best compar"),
        ((0.06, 0.001, 0.119), "gain", "raised balanced accuracy by 0.06 (95 % interval 0.00–0.12, which excludes 0)"),
        ((-0.06, -0.11, -0.01), "loss", "lowered balanced accuracy by 0.06 (95 % interval 0.01–0.11) against the best"),
        (
            (0.02, -0.04, 0.08),
            "none",
            "No gain was shown: synthetic features changed balanced accuracy by +0.02 against",
        ),
        ((0.04, 0.0, 0.08), "none", "(95 % interval 0.00 to +0.08, which includes 0)"),
    ],
)
def test_the_verdict_is_what_the_interval_says(gain: tuple[float, float, float], kind: str, sentence: str) -> None:
    found = verdict(Metrics.model_validate(made_up(gain)))
    assert found.kind == kind
    assert sentence in found.sentence
    assert "class weights" in found.sentence


def test_without_a_generator_there_is_no_verdict() -> None:
    found = verdict(Metrics.model_validate(nothing_but_arms()))
    assert (found.kind, found.sentence) == ("unknown", "Whether synthetic features help was not measured.")


def test_a_sound_evaluation_has_no_warnings() -> None:
    assert not verdict(Metrics.model_validate(made_up())).warnings


@pytest.mark.parametrize(
    ("path", "value", "warning"),
    [
        ("control.chance_inside", False, "Do not believe these figures"),
        ("control", None, "a leak from training to test is not ruled out"),
        ("made.cohort.patients.LGG", 9, "Only 9 patients of LGG: a single one moves its recall by 0.11"),
        ("made.cohort.phantoms", True, "drawings"),
        ("made.protocol.name", "paper", "one split"),
        ("augmented_chosen_on", "test", "best of several on these same patients"),
        ("comparators.acgan@400.balanced_accuracy.ci95", [0.45, 0.7], "not shown to be better than chance"),
        ("comparators.size.auc.mean", 0.9, "Tumour size alone grades no worse"),
    ],
)
def test_it_warns_of_what_makes_figures_say_less(path: str, value: Any, warning: str) -> None:
    warnings = verdict(Metrics.model_validate(changed_at(path, value))).warnings
    assert len(warnings) == 1
    assert warning in warnings[0]


@pytest.mark.parametrize(
    ("mean", "ends", "text"),
    [
        (0.61234, (0.55123, 0.67456), "0.61 (0.55–0.67)"),
        (0.61234, (0.60123, 0.62345), "0.612 (0.601–0.623)"),
        (0.61234, (0.2, 1.0), "0.6 (0.2–1.0)"),
        (0.61234, None, "0.61"),
        (0.98765, (0.98765, 0.98765), "0.99 (0.99–0.99)"),
        (None, None, "–"),
    ],
)
def test_figures_have_no_more_digits_than_their_interval_supports(
    mean: float | None, ends: tuple[float, float] | None, text: str
) -> None:
    assert told(Score(mean=mean, ci95=ends, n=9)) == text


def test_changes_have_a_sign_and_nothing_has_a_minus_zero() -> None:
    score = Score(mean=-0.004, ci95=(-0.104, 0.096), n=9)
    assert changed(score) == "0.00 (−0.10 to +0.10)"
    assert (number(score), interval(score)) == ("0.00", "−0.10 to 0.10")


# the page


class Reader(HTMLParser):
    """What a page is made of: tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(whole: str) -> None:
    read = Reader(whole)
    tags = {tag for tag, _ in read.tags}
    assert not tags & {"script", "link", "iframe", "object", "form"}
    for _, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in whole
    assert len(whole) < 3 * 2**20


def test_the_page_can_be_read_by_those_who_see_no_pictures(whole: str) -> None:
    read = Reader(whole)
    assert ("html", {"lang": "en"}) in read.tags
    pictures = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == 16  # 8 overlays, 2 of maps, 6 charts
    assert all(len(attributes["alt"] or "") > 20 for attributes in pictures)
    anchors = {attributes["href"] for tag, attributes in read.tags if tag == "a"}
    assert anchors == {f"#{attributes['id']}" for tag, attributes in read.tags if tag == "section"}


def test_the_page_says_it_all(whole: str) -> None:
    text = Reader(whole).text.replace("\u00a0", " ")
    for part in (
        "Synthetic features raised balanced accuracy by 0.06 (95 % interval 0.01–0.11) over the best comparator",
        "61 HGG, 40 LGG; 4540 slices. Grades III, IV count as HGG.",
        "5 folds by patient, stratified by class, dealt 2 times; seeds 0, 1",
        "the paper’s augmented0.570.380.52",
        "wgan-gp with 1158 synthetic samples",
        "held-out real",
        "Lowest: P",
        "Chance lies in all intervals",
        "gliaflow evaluate cohort --out report --generator acgan --generator wgan-gp",
        "torch 2.8.0",
    ):
        assert part in text
    assert text.index("raised balanced accuracy") < text.index("Does a classifier")  # the verdict comes first


def test_what_was_not_measured_is_left_out_in_a_line_each(tmp_path: Path) -> None:
    text = Reader(page(nothing_but_arms(), {}, tmp_path)).text
    for line in (
        "No generator was asked for",
        "Not tried in this run",
        "No feature maps were kept.",
        "Segmentation was not measured in this run.",
        "No learning curves of the U-Net were kept.",
        "No example slices were kept.",
        "Calibration was not measured in this run.",
        "No control with shuffled labels was run.",
    ):
        assert line in text
    empty = nothing_but_arms() | {"table3": None, "comparators": {}, "best_comparator": None}
    assert "Grading was not measured in this run." in page(empty, {}, tmp_path)


def test_a_warning_stands_above_everything_else(tmp_path: Path) -> None:
    text = Reader(page(nothing_but_arms(), {}, tmp_path)).text
    assert text.index("a leak from training to test is not ruled out") < text.index("Does a classifier")


def test_scores_without_means_or_intervals_are_drawn_as_they_are(tmp_path: Path) -> None:
    unknown = {"mean": None, "ci95": None, "n": 0}

    def forget(values: Any) -> Any:
        if isinstance(values, dict):
            return unknown if set(values) == set(unknown) else {key: forget(each) for key, each in values.items()}
        return [forget(each) for each in values] if isinstance(values, list) else values

    text = Reader(page(forget(made_up()), pictures(), tmp_path)).text
    assert "Whether synthetic features help was not measured." in text
    assert "nan" not in text.lower().replace("scanner", "")


def test_the_task_of_slices_with_tumour_is_not_called_grading(tmp_path: Path) -> None:
    values = json.loads(json.dumps(nothing_but_arms()).replace("HGG", "tumour").replace("LGG", "none"))
    values["made"] |= {"task": "tumour"}
    values["made"]["cohort"] |= {"patients": {"not known": 71}, "high": []}
    text = Reader(page(values, {}, tmp_path)).text
    assert "this says nothing of grades" in text
    assert "71 not known" in text
    assert "the paper’s augmented" not in text
    assert "Grading" not in text


def test_an_arm_whose_count_validation_chose_is_told_apart(tmp_path: Path) -> None:
    values = nothing_but_arms() | {"augmented_minus_best": made_up()["augmented_minus_best"], "augmented_arm": "acgan"}
    values["comparators"]["acgan"] = made_up()["comparators"]["acgan@400"] | {"arm": "acgan"}
    text = Reader(page(values, {}, tmp_path)).text
    assert "Judged: acgan, with as many samples as validation patients chose." in text
    assert "judged · number of samples chosen on validation patients" in text


def test_copies_are_called_so(tmp_path: Path) -> None:
    generators = json.loads(json.dumps(made_up()["gan"]))
    for generator in generators.values():
        generator["history"] = []
    assert "copying" not in page(nothing_but_arms() | {"gan": generators}, {}, tmp_path)
    generators["acgan"]["per_class"]["LGG"]["nearest"] = {"synthetic_to_train": 0.4, "held_out_to_train": 3.4}
    assert "The generator may be copying patients." in page(nothing_but_arms() | {"gan": generators}, {}, tmp_path)


ODD = "<img src=x onerror='alert(1)'>&\"$\\frac{$ 患者 \u202e"


def test_names_are_strangers_text(tmp_path: Path) -> None:
    values = json.loads(
        json.dumps(made_up()).replace("wgan-gp", "ODD").replace("P008", "ODD").replace("made-up", "ODD")
    )
    values = json.loads(json.dumps(values).replace("ODD", json.dumps(ODD)[1:-1]))
    values["made"] |= {"command": ODD, "device": ODD, "versions": {ODD: ODD}, "profile": {ODD: ODD}, "tap": ODD}
    values["made"]["cohort"] |= {"layout": ODD, "high": [ODD]}
    figures = pictures() | {"names": np.array([ODD] * 8)}
    text = page(values, figures, tmp_path)
    read = Reader(text)
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert "<img src=x" not in text
    assert ODD in read.text
    assert len([tag for tag, _ in read.tags if tag == "img"]) == 16


def test_the_same_figures_make_the_same_page(whole: str, tmp_path: Path) -> None:
    write_metrics(Metrics.model_validate(made_up()), tmp_path / "metrics.json")
    np.savez_compressed(tmp_path / "figures.npz", **pictures())
    assert render(tmp_path).read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("module", ["report", "verdict", "metrics_schema"])
def test_it_needs_no_torch_and_matplotlib_only_to_draw(module: str) -> None:
    code = f"import sys, gliaflow_trainer.{module}; assert not {{'torch', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
