"""A ``metrics.json`` for tests. Every figure here is random: none was measured."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gliaflow_evaluation.generator_quality import DISTANCES
from gliaflow_evaluation.judges import JUDGEMENTS
from gliaflow_evaluation.report.schema import SCHEMA

CLASSES = ("HGG", "LGG")
ARMS = ("weights", "oversample", "smote", "gaussian", "mixup", "threshold", "linear", "size", "slices")
COUNTS = (100, 400, 1158)


def made_up(gain: tuple[float, float, float] = (0.06, 0.01, 0.11), seed: int = 0) -> dict[str, Any]:
    """All that an evaluation writes, of random figures; ``gain``: the verdict's difference and its interval."""
    rng = np.random.default_rng(seed)

    def score(middle: float, half: float = 0.06, n: int = 101) -> dict[str, Any]:
        mean = float(middle + 0.25 * half * rng.standard_normal())
        return {"mean": mean, "ci95": [mean - half, mean + 1.1 * half], "n": n}

    def differences(middle: float = 0.0) -> dict[str, Any]:
        return {"balanced_accuracy": score(middle), "auc": score(middle), "brier": score(-middle / 3, 0.02)}

    def scores(skill: float) -> dict[str, Any]:
        return {
            "balanced_accuracy": score(skill),
            "auc": score(skill + 0.05),
            "recall_positive": score(skill + 0.1),
            "recall_negative": score(skill - 0.1, 0.1),
            "brier": score(0.22, 0.02),
        }

    def row(arm: str, skill: float) -> dict[str, Any]:
        slices = {
            "recall_positive": score(skill + 0.1, 0.03, 2712),
            "recall_negative": score(skill - 0.1, 0.04, 1828),
            "accuracy": score(skill, 0.03, 4540),
        }
        shortcut = arm in ("size", "slices")
        return {
            "arm": arm,
            "scores": scores(skill),
            "slices": None if shortcut else slices,
            "difference": None if arm == "real" else differences(skill - 0.6),
        }

    def epochs(number: int, **ends: tuple[float, float]) -> list[dict[str, float]]:
        fall = np.exp(-np.arange(number) / number * 4)
        noisy = {
            key: end + (start - end) * fall + 0.01 * rng.standard_normal(number) for key, (start, end) in ends.items()
        }
        return [{key: float(values[epoch]) for key, values in noisy.items()} for epoch in range(number)]

    skill = dict(zip(ARMS, rng.uniform(0.55, 0.64, len(ARMS)), strict=True)) | {"size": 0.52, "slices": 0.5}
    skill |= {f"{name}@{count}": 0.66 - 0.0001 * abs(count - 400) for name in ("acgan", "wgan-gp") for count in COUNTS}
    arms = {arm: row(arm, at) for arm, at in {"real": 0.6, **skill}.items()}
    segmented = {"soft_dice_loss": score(0.2, 0.01), "hard_dice": score(0.8, 0.02), "iou": score(0.72, 0.02)}
    dice = rng.beta(8, 2, 101)
    verdict_on = differences() | {"balanced_accuracy": {"mean": gain[0], "ci95": list(gain[1:]), "n": 101}}
    pairs = {
        key: {"synthetic": float(rng.uniform(0.3, 1)), "floor": float(rng.uniform(0.2, 0.6))} for key in DISTANCES
    } | {"nearest": {"synthetic": 3.1, "floor": 3.4}}
    gan = {
        "options": {"ngf": 64},
        "judgements": {name: score(0.7, 0.02, 4800) for name in JUDGEMENTS},
        "distances": dict.fromkeys(CLASSES, pairs),
        "cas": scores(0.57),
        "history": [
            epochs(30, loss_d=(2, 0.8), loss_g=(1, 2.5), accuracy_real=(0.5, 0.95), accuracy_fake=(0.5, 0.9))
            for _ in range(5)
        ],
    }

    def bins() -> list[dict[str, Any]]:
        off = rng.uniform(-0.1, 0.1, 5)
        centres = np.linspace(0.1, 0.9, 5)
        return [{"predicted": float(p), "observed": float(p + d), "n": 20} for p, d in zip(centres, off, strict=True)]

    shown = ("real", "weights", "acgan@400")
    rates = np.linspace(0, 1, 11)
    roc = [{"false_positive_rate": float(rate), "true_positive_rate": float(rate**0.5)} for rate in rates]

    def patient(number: int) -> dict[str, Any]:
        answers = {
            arm: {"logit": logit, "probability": 1 / (1 + np.exp(-logit))} for arm in shown for logit in [rng.normal()]
        }
        ungraded = {key: {"logit": None, "probability": None} for key in shown}
        return {
            "patient": f"P{number:03d}",
            "fold": number % 5,
            "label": "HGG" if number < 61 else "LGG",
            "answers": ungraded if number == 7 else answers,
        }

    return {
        "schema": SCHEMA,
        "made": {
            "command": "gliaflow evaluate cohort --out report --generator acgan --generator wgan-gp",
            "date": "2026-01-02T03:04:05+00:00",
            "seconds": 4321.0,
            "versions": {"python": "3.11.7", "gliaflow": "0.1.0", "torch": "2.8.0"},
            "profile": {"width": 16, "input": {"size": [240, 240], "spacing": [1.0, 1.0]}},
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
        "table3": {
            "baseline": arms["real"],
            "augmented": arms["acgan@400"],
            "beyond_threshold": differences(0.01),
        },
        "comparators": arms,
        "best_comparator": "weights",
        "augmented_arm": "acgan@400",
        "augmented_chosen_on": "validation",
        "augmented_minus_best": verdict_on,
        "counts": {
            name: [
                {key: arms[f"{name}@{count}"][key] for key in ("scores", "difference")} | {"count": count}
                for count in COUNTS
            ]
            for name in ("acgan", "wgan-gp")
        },
        "scarce": [
            {
                "rare_patients": count,
                "arms": {
                    arm: {"scores": scores(at + count / 400)}
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
            "scores": scores(0.5),
            "arms": {"acgan": scores(0.5)},
            "chance_inside": True,
        },
        "calibration": {arm: bins() for arm in shown},
        "patients": [patient(i) for i in range(101)],
        "roc": dict.fromkeys(shown, roc),
        "confusion": {key: {"HGG": {"HGG": 40.5, "LGG": 20.5}, "LGG": {"HGG": 12, "LGG": 28}} for key in shown},
        "learning": {"unet": [epochs(24, loss=(0.9, 0.15), val_dice=(0.2, 0.8), val_iou=(0.1, 0.7)) for _ in range(5)]},
    }


def nothing_but_arms() -> dict[str, Any]:
    """An evaluation with nothing but the arms without synthetic features."""
    whole = made_up()
    arms = {arm: row for arm, row in whole["comparators"].items() if "@" not in arm}
    table3 = whole["table3"] | {"augmented": None, "beyond_threshold": None}
    none = dict.fromkeys(("table2", "augmented_arm", "augmented_minus_best", "scarce", "control", "learning"))
    empty: dict[str, Any] = {key: {} for key in ("counts", "gan", "calibration", "roc", "confusion")}
    return whole | none | empty | {"comparators": arms, "table3": table3, "patients": []}


def changed_at(path: str, value: Any) -> dict[str, Any]:
    """All that an evaluation writes, with another value at ``path``, a list of keys with dots between them."""
    values: Any = json.loads(json.dumps(made_up()))
    *way, last = path.split(".")
    at = values
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    return values  # type: ignore[no-any-return]
