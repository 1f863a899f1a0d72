"""``gliaflow evaluate`` on a dozen small heads, from their folders to metrics.json and report.html."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("distributed")

import small
from dask_cluster import DaskCluster, cancelled_at_first, dask_cluster, report_until_cancelled, wait_for
from distributed import Client
from gliaflow_evaluation import cluster as clusters
from gliaflow_evaluation import fold as folds
from gliaflow_evaluation import run as module
from gliaflow_evaluation.comparators import COMPARATORS, comparators
from gliaflow_evaluation.conditions import Conditions, conditions_of
from gliaflow_evaluation.on_worker import run_task
from gliaflow_evaluation.progress import Rows, RunProgress
from gliaflow_evaluation.protocol import Design
from gliaflow_evaluation.report.schema import Metrics, read_metrics
from gliaflow_evaluation.request import EvaluateRequest
from gliaflow_evaluation.run import evaluate
from gliaflow_evaluation.runners import Task, TaskLost, ThisProcess, run_all
from gliaflow_plugins.contracts import Cohort, PluginError
from gliaflow_plugins.generators.adapted import Adapted
from gliaflow_plugins.registry import Registry
from gliaflow_runtime.bundle.load import Bundle, demo_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.errors import UsageError
from gliaflow_trainer.run_folder import only_command
from gliaflow_trainer.slices import kept_scans
from gliaflow_trainer.variants import choose
from rich.console import Console
from rich.progress import Progress
from small_fold import plan_of

pytestmark = pytest.mark.slow
DESIGN = Design(folds=2, seeds=1, counts=(5, 10))


@pytest.fixture(scope="module")
def small_registry() -> Iterator[None]:
    """Folds load the registry themselves, as they run in other processes. Small networks are fastest on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "load_registry", lambda: small.REGISTRY)
        patch.setattr(module, "available_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    small.write_cohort(folder / "cohort", 8, 6)
    return folder


def run(
    folder: Path,
    out: str,
    cohort: Cohort | None = None,
    generators: str = "levels",
    options: dict[str, Any] | None = None,
    bar: Progress | None = None,
    registry: Registry = small.REGISTRY,
    **settings: Any,
) -> Metrics:
    """Evaluate; ``settings`` are of the request or of its design."""
    design = {name: settings.pop(name) for name in list(settings) if name in Design.__dataclass_fields__}
    request = EvaluateRequest(
        cohort=cohort or small.cohort(folder / "cohort"),
        folder=folder / "cohort",
        out=folder / out,
        profile=small.PROFILE,
        variants=choose(registry, generators, small.PROFILE, options),
        design=dataclasses.replace(DESIGN, **design),
        jobs=1,
        **settings,
    )
    with bar or Progress(disable=True) as shown:
        return evaluate(request, shown)


@pytest.fixture(scope="module")
def metrics(folder: Path, small_registry: None) -> Metrics:
    return run(folder, "report", scarce=(2,))


def test_it_writes_files_that_a_reader_accepts(folder: Path, metrics: Metrics) -> None:
    assert read_metrics(folder / "report/metrics.json").model_dump_json() == metrics.model_dump_json()
    assert "</html>" in (folder / "report/report.html").read_text()
    assert str(folder.parent) not in (folder / "report/metrics.json").read_text(), "no path of this machine"
    assert set(np.load(folder / "report/figures.npz")) >= {"image", "truth", "found", "names"}


def test_it_says_how_it_was_made(metrics: Metrics) -> None:
    made = metrics.made
    assert made.cohort.patients == {"HGG": 8, "LGG": 6}
    assert not made.cohort.phantoms
    assert (made.protocol.name, made.protocol.folds, made.protocol.seeds) == ("grouped", 2, [0])
    assert (made.tap, made.shape) == ("dec3", (8, 12, 12)), "cropped: half of 24"


def test_leaks_are_refused_or_noted(folder: Path, metrics: Metrics) -> None:
    leaking = dataclasses.replace(small.cohort(folder / "cohort"), leaks=["H0 and h0"])
    with pytest.raises(PluginError, match="--allow\n  leak: H0 and h0"):
        run(folder, "leaks", leaking)
    shutil.copytree(folder / "report", folder / "leaks")
    allowed = run(folder, "leaks", leaking, scarce=(2,), allow=True)
    assert (metrics.made.cohort.leaks, allowed.made.cohort.leaks) == ([], ["H0 and h0"])
    assert "a leak was allowed (--allow): H0 and h0." in (folder / "leaks/report.html").read_text()


def test_every_patient_is_tested_once_by_a_network_that_never_saw_it(folder: Path, metrics: Metrics) -> None:
    assert metrics.table2 is not None
    tested = [each.patient for each in metrics.table2.test_patients.per_patient]
    assert sorted(tested) == [*(f"H{n}" for n in range(8)), *(f"L{n}" for n in range(6))]
    assert metrics.table2.test_patients.dice.n == 14
    assert metrics.table3 is not None
    assert metrics.table3.baseline.scores["auc"].n == 14


def test_real_features_grade_and_shuffled_labels_do_not(metrics: Metrics) -> None:
    """The grades of these heads differ in brightness; shuffled labels do not."""
    real, control = metrics.comparators["real"].scores["auc"].mean, metrics.control
    assert real is not None
    assert real > 0.85
    assert metrics.comparators["slices"].scores["auc"].mean is not None
    assert control is not None
    assert control.scores["auc"].mean is not None
    assert control.scores["auc"].mean < 0.85


def test_every_arm_is_compared_with_real_features_alone(metrics: Metrics) -> None:
    fitted = [name for name, each in COMPARATORS.items() if not (each.unlabelled or each.source or each.of_bundle)]
    assert set(metrics.comparators) == {*fitted, "levels", "levels@5", "levels@10"}
    assert all((arm.difference is None) == (name == "real") for name, arm in metrics.comparators.items())
    assert metrics.augmented_arm == "levels"
    assert metrics.augmented_chosen_on == "validation"
    assert metrics.best_comparator in comparators("real", "remedy", "carried", "linear")
    assert [each.count for each in metrics.counts["levels"]] == [5, 10]
    assert metrics.gan["levels"].options == {"spread": 0.5}
    assert metrics.scarce is not None
    assert metrics.scarce[0].rare_patients == 2
    assert {"real", "levels"} <= metrics.scarce[0].arms.keys()


def test_each_patients_answers_are_listed_and_agree_with_the_scores(metrics: Metrics) -> None:
    arms = {"real", "levels", str(metrics.best_comparator)}
    assert [each.patient for each in metrics.patients] == [*(f"H{n}" for n in range(8)), *(f"L{n}" for n in range(6))]
    assert all(each.answers.keys() == arms == metrics.roc.keys() for each in metrics.patients)
    for arm in arms:
        recalls = [metrics.comparators[arm].scores[f"recall_{side}"] for side in ("positive", "negative")]
        for label, recall in zip(("HGG", "LGG"), recalls, strict=True):
            answers = [each.answers[arm] for each in metrics.patients if each.label == label]
            high = sum(0.5 if answer.logit is None else answer.logit > 0 for answer in answers)
            assert metrics.confusion[arm][label] == {"HGG": high, "LGG": len(answers) - high}
            assert recall.mean == pytest.approx(metrics.confusion[arm][label][label] / len(answers))
            assert all(a.probability is None or (a.probability > 0.5) == ((a.logit or 0) > 0) for a in answers)
        assert metrics.roc[arm][0].true_positive_rate == 0
        assert metrics.roc[arm][-1].true_positive_rate == pytest.approx(1)


def test_scans_without_labels_add_their_arms_and_must_be_of_other_patients(folder: Path, metrics: Metrics) -> None:
    known = {each.patient for each in metrics.patients}
    scans = small.cohort(small.write_cohort(folder / "others", 11, 9)).cases
    shutil.copytree(folder / "report", folder / "more")
    with pytest.raises(PluginError, match=r"--allow\n(?s:.*)the scan 'H0' of --unlabelled has the voxels of 'H0'"):
        run(folder, "more", scarce=(2,), unlabelled=scans)
    renamed = [dataclasses.replace(scan, patient="h 0") for scan in scans if scan.patient == "H8"]
    with pytest.raises(PluginError, match="leak: the scan 'H8' of --unlabelled is of a patient with the name of 'H0'"):
        run(folder, "more", scarce=(2,), unlabelled=renamed)
    found = run(folder, "more", scarce=(2,), unlabelled=[scan for scan in scans if scan.patient not in known])
    assert found.made.cohort.unlabelled == 6
    added = {"shared_unlabelled", "self_training", "propagation"}
    assert set(found.comparators) - set(metrics.comparators) == added
    assert all(found.comparators[name] == metrics.comparators[name] for name in metrics.comparators), "and no other"
    judged = {"shared", "shared_unlabelled", "levels"}
    assert found.scarce is not None
    assert found.control is not None
    assert judged == set(found.against_best_auc) == set(found.scarce[0].against_best_auc) == set(found.control.arms)
    rivals = [found.comparators[name].scores["auc"].mean for name in comparators("real", "remedy", "linear")]
    best = found.comparators[found.against_best_auc["shared"].best_comparator]
    assert best.scores["auc"].mean == max(score for score in rivals if score is not None)
    assert "Without synthetic features, covariance shared with scans without labels: AUC" in "".join(
        (folder / "more/report.html").read_text().splitlines()
    )


def test_another_cohort_with_labels_adds_its_arms_and_judges_the_generator_by_them(
    folder: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {each.patient for each in metrics.patients}
    scans = small.cohort(small.write_cohort(folder / "third", 13, 12)).cases
    shutil.copytree(folder / "report", folder / "source")
    registry = dataclasses.replace(small.REGISTRY, generators={"adapted": Adapted()})
    monkeypatch.setattr(folds, "load_registry", lambda: registry)
    given = {"scarce": (2,), "generators": "adapted", "registry": registry}
    with pytest.raises(PluginError, match="generator 'adapted' needs labelled scans of another cohort, which --source"):
        run(folder, "source", **given)
    with pytest.raises(
        PluginError, match=r"of --source, or give --allow\n(?s:.*)'H0' of --source has the voxels of 'H0'"
    ):
        run(folder, "source", source=scans, **given)
    with pytest.raises(PluginError, match=r"^--source: no scan with a mask is of LGG; classes come from"):
        run(folder, "source", source=[scan for scan in scans if scan.label == "HGG"], **given)
    found = run(folder, "source", source=[scan for scan in scans if scan.patient not in known], **given)
    assert found.made.cohort.source == 11
    assert set(found.comparators) - set(metrics.comparators) == {"source", "both", "adapted", "adapted@5", "adapted@10"}
    assert found.comparators["weights"] == metrics.comparators["weights"]
    assert found.scarce is not None
    assert found.control is not None
    for point in (found, found.scarce[0]):
        assert set(point.against_best_auc) == {"shared", "source", "both", "adapted"}
        assert set(point.against_others_auc) == {"adapted"}
        assert point.against_best_auc["adapted"].best_comparator in comparators("real", "remedy", "linear")
        against = point.against_others_auc["adapted"].best_comparator
        scores = point.comparators if isinstance(point, Metrics) else point.arms
        auc = {name: scores[name].scores["auc"].mean or 0 for name in ("source", "both")}
        assert auc[against] == max(auc.values())
    assert set(found.control.arms) == {"shared", "adapted"}
    text = " ".join((folder / "source/report.html").read_text().split())
    assert "With 2 LGG patients to fit on: adapted changed AUC by" in text


@pytest.mark.parametrize("few", [1, 3, 9])
def test_more_scarce_patients_than_a_fold_has_are_refused_at_once(folder: Path, few: int) -> None:
    with pytest.raises(
        PluginError, match=f"--scarce {few}: a fold has 3 patients of LGG to fit on; give 2 or more, and"
    ):
        run(folder, f"scarce-{few}", scarce=(few,))


def test_a_generator_cannot_have_the_name_of_an_arm(folder: Path) -> None:
    registry = dataclasses.replace(small.REGISTRY, generators={"weights": small.Levels(), "smote": small.Levels()})
    for name, refused in (("weights", True), ("smote", False)):
        variants = choose(registry, name, small.PROFILE, None)
        request = EvaluateRequest(
            small.cohort(folder / "cohort"), folder / "cohort", folder / "named", small.PROFILE, variants, DESIGN
        )
        if refused:
            with pytest.raises(PluginError, match="'weights': an arm without a generator has this name"):
                module.check(request)
        else:
            assert len(module.check(request)) == 14


def test_a_second_run_fits_nothing_and_gives_the_same_figures(
    folder: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fitted again")

    monkeypatch.setattr("gliaflow_trainer.unet_bundle.fit_unet", never)
    monkeypatch.setattr("gliaflow_trainer.features.stream", never)
    monkeypatch.setattr(folds, "Arms", never)
    again = run(folder, "report", scarce=(2,))
    assert again.model_copy(update={"made": metrics.made}) == metrics


def test_a_run_of_other_settings_needs_another_folder(folder: Path, metrics: Metrics) -> None:
    with pytest.raises(PluginError, match=r"another run: protocol was .* and is now .*; remove it, or name another"):
        run(folder, "report", folds=3)


def test_work_with_other_threads_or_on_another_device_needs_another_folder(folder: Path, metrics: Metrics) -> None:
    with pytest.raises(PluginError, match="another run: threads was 1 and is now 2; remove"):
        run(folder, "report", threads=2)
    with pytest.raises(PluginError, match="another run: device was cpu and is now cuda; remove"):
        run(folder, "report", device="cuda", threads=1)


def test_work_of_a_version_that_did_not_record_its_threads_is_refused(folder: Path, metrics: Metrics) -> None:
    settings = json.loads((folder / "report/work/run.json").read_text())
    del settings["threads"], settings["device"]
    (folder / "former/work").mkdir(parents=True)
    (folder / "former/work/run.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
    with pytest.raises(PluginError, match="another run: device is new, threads is new; remove it, or name another"):
        run(folder, "former")


def test_two_commands_do_not_use_one_folder(folder: Path) -> None:
    with (
        only_command(folder / "used/work"),
        pytest.raises(UsageError, match="used/work: another gliaflow command uses this folder; wait for its end"),
    ):
        run(folder, "used")
    assert not (folder / "used/work/run.json").exists()


def test_scans_masks_or_grades_that_changed_need_another_folder(folder: Path, metrics: Metrics) -> None:
    cohort = small.cohort(folder / "cohort")
    first, second, *others = cohort.cases
    regraded = [dataclasses.replace(first, grade="IV"), second, *others]
    with pytest.raises(
        PluginError, match=f"another run: scan {first.id} grade was {first.grade} and is now IV; remove"
    ):
        run(folder, "report", dataclasses.replace(cohort, cases=regraded))
    other_scan = [dataclasses.replace(first, scan=second.scan), second, *others]
    with pytest.raises(PluginError, match=f"changed since they were cut: {second.scan}; remove"):
        run(folder, "report", dataclasses.replace(cohort, cases=other_scan))


def test_other_counts_use_the_same_networks(folder: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a U-Net was fitted again")

    monkeypatch.setattr("gliaflow_trainer.unet_bundle.fit_unet", never)
    other = run(folder, "report", counts=(3,), generators="levels", shuffle=False)
    assert {"levels", "levels@3"} <= other.comparators.keys()
    assert other.control is None
    assert other.comparators["real"] == metrics.comparators["real"]


def test_a_unet_from_elsewhere_is_used_as_it_is(folder: Path, metrics: Metrics) -> None:
    unet = folder / "report/work/fold-0/unet"
    found = run(folder, "elsewhere", unet=unet, generators="", counts=(), shuffle=False)
    assert found.made.unet == Bundle(unet).id
    assert found.table2 is not None
    assert found.table2.train.hard_dice.mean is None, "it has no training patients here"
    assert found.table2.test_patients.dice.n == 14
    assert found.learning is None
    assert found.augmented_arm is None
    assert not list((folder / "elsewhere/work").glob("fold-*/unet"))


def test_slices_with_tumour_or_without(folder: Path, metrics: Metrics) -> None:
    """Whatever the grades: here one patient has another than the rest."""
    known = small.cohort(folder / "cohort")
    cases = [case for case in known.cases if case.label == "HGG" or case.id == "L0"]
    unet, out = folder / "report/work/fold-0/unet", "tumour"
    found = run(folder, out, dataclasses.replace(known, cases=cases), task="tumour", unet=unet, counts=(5,))
    assert found.made.classes == ("tumour", "none")
    truth = [bool(plane.any()) for scan in kept_scans(folder / out / "work/slices") for plane in np.asarray(scan.mask)]
    real = found.comparators["real"]
    assert (real.scores["recall_positive"].n, real.scores["recall_negative"].n) == (
        truth.count(True),
        truth.count(False),
    )
    assert real.scores["auc"].mean is not None
    assert real.scores["auc"].mean > 0.7
    assert "size" not in found.comparators
    assert found.patients == []
    assert sum(found.confusion["real"]["tumour"].values()) == pytest.approx(truth.count(True))


def test_scans_without_a_class_are_left_out(folder: Path) -> None:
    known = small.cohort(folder / "cohort")
    cases = [dataclasses.replace(case, label=None) for case in known.cases]
    with pytest.raises(PluginError, match=r"no scan has a mask and a grade \(--grades TABLE"):
        run(folder, "nothing", dataclasses.replace(known, cases=cases))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generators": "nobody"}, "nobody"),
        ({"options": {"colour": "red"}}, "colour"),
        ({"counts": (0,)}, "counts"),
        ({"folds": 9}, "9 are needed"),
        ({"init": demo_bundle()}, "width"),
    ],
)
def test_mistakes_in_a_request_are_found_before_any_work_is_done(
    folder: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises((PluginError, BundleError), match=message):
        run(folder, "wrong", **wrong)
    assert not (folder / "wrong").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask"), count=2) as cluster:
        yield cluster


def test_a_worker_that_differs_is_named_with_the_remedies_before_anything_is_fitted(
    folder: Path, cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = {
        "versions": {"torch": "1.0"},
        "code": "other",
        "plugins": {("generator", "mine"): "other"},
        "work": Path("/elsewhere"),
        "mask_digest": "other",
        "bundles": {Path("/elsewhere"): "a@1"},
    }

    @contextmanager
    def changed(*given: Any) -> Iterator[Conditions]:
        with conditions_of(*given) as ours:
            yield dataclasses.replace(ours, **differences)

    monkeypatch.setattr(module, "conditions_of", changed)
    with pytest.raises(PluginError) as raised:
        run(folder, "refused", generators="", scheduler=cluster.address)
    lines = str(raised.value).splitlines()
    for worker in cluster.workers:
        assert len([line for line in lines if line.startswith(f"worker {worker}: ")]) == len(differences)
    for text in (
        "there and 1.0 here: install the same there",
        "has other code than this one",
        "generator 'mine' is missing there, or has other code",
        "/elsewhere is not the folder that it is here: --out must name storage that all share",
        "_seg.nii.gz is another file there than here",
        "put the bundle on storage that all share",
    ):
        assert text in str(raised.value)
    assert not list((folder / "refused/work").glob("fold-*"))


def test_after_an_interruption_the_workers_tasks_end_with_their_next_report(
    folder: Path, cluster: DaskCluster, tmp_path: Path
) -> None:
    mask = small.cohort(folder / "cohort").cases[0].mask
    assert mask is not None
    conditions = conditions_of(plan_of(tmp_path, generators=()), mask)
    with Progress(disable=True) as bar, clusters.connected(cluster.address) as connected:
        shown = RunProgress(bar, bar.add_task("folds and seeds"), Rows(bar))
        with suppress(KeyboardInterrupt), connected.runner(conditions, shown) as runner:
            runner.submit(Task("fold 9", report_until_cancelled, (tmp_path / "ended",)))
            wait_for(lambda: [task for task in bar.tasks if task.description == "fold 9: epochs"])
            raise KeyboardInterrupt
        wait_for((tmp_path / "ended").exists)
    assert wait_for((tmp_path / "ended").read_text) == "TaskCancelled"


def test_a_task_that_an_ending_worker_gave_back_runs_again(
    folder: Path, cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "ATTEMPTS", 3)
    mask = small.cohort(folder / "cohort").cases[0].mask
    assert mask is not None
    conditions = conditions_of(plan_of(tmp_path, generators=()), mask)
    with Progress(disable=True) as bar, clusters.connected(cluster.address) as connected:
        shown = RunProgress(bar, bar.add_task("folds and seeds"), Rows(bar))
        with connected.runner(conditions, shown) as runner:
            runner.submit(Task("fold 8", cancelled_at_first, (tmp_path / "twice", 2)))
            task, result = runner.next()
            assert (task.name, result) == ("fold 8", "done")
            runner.submit(Task("fold 9", cancelled_at_first, (tmp_path / "always", 9)))
            with pytest.raises(TaskLost, match="fold 9: 3 times its worker was stopped"):
                runner.next()


def test_another_gliaflow_is_named_before_its_task_is_read(cluster: DaskCluster) -> None:
    with Client(cluster.address, set_as_default=False) as client:
        task = client.submit(run_task, {"gliaflow": "99"}, "other", b"not a pickle", pure=False)
        with pytest.raises(PluginError) as raised:
            task.result()
    version, code = str(raised.value).splitlines()
    assert re.match(r"worker tcp://\S+: gliaflow is \S+ there and 99 here: ", version)
    assert re.match(r"worker tcp://\S+: its gliaflow \S+ has other code ", code)


def test_a_task_whose_workers_ended_is_named_after_all_others_are_done() -> None:
    class Losing(ThisProcess):
        def next(self) -> tuple[Task, Any]:
            task, result = super().next()
            if task.name == "fold 0":
                raise TaskLost("fold 0: 4 workers ended")
            return task, result

    done: list[str] = []

    def then(task: Task, _: Any) -> list[Task]:
        done.append(task.name)
        return [Task(f"{task.name}, seed 0", int, ())] if "seed" not in task.name else []

    with Progress(disable=True) as bar, pytest.raises(PluginError, match=r"fold 0: 4 workers ended\. All else is kept"):
        run_all(Losing(Rows(bar)), [Task(f"fold {n}", int, ()) for n in range(3)], then)
    assert done == ["fold 1", "fold 2", "fold 1, seed 0", "fold 2, seed 0"]


def test_a_cluster_resumes_and_gives_the_same_digits_also_when_a_worker_is_killed(
    folder: Path, metrics: Metrics, cluster: DaskCluster
) -> None:
    """One fold is of the run on this machine. The other fold's U-Net is begun by a worker that is killed."""
    shutil.copytree(folder / "report/work", folder / "cluster/work")
    shutil.rmtree(folder / "cluster/work/fold-0")
    unet = folder / "cluster/work/fold-0/unet"
    killed: list[str] = []

    def kill() -> None:
        wait_for((unet / "unet.checkpoint").exists)
        worker = cluster.worker_of("fold 0, ")
        os.kill(cluster.workers[worker], signal.SIGKILL)
        killed.append(worker if not (unet / "manifest.json").exists() else "too late")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    text = io.StringIO()
    bar = Progress(console=Console(file=text, width=200))
    found = run(folder, "cluster", generators="", bar=bar, shuffle=False, scheduler=cluster.address)
    killer.join()
    assert killed[0] in cluster.workers
    fitted = [name for name, each in COMPARATORS.items() if not (each.unlabelled or each.source or each.of_bundle)]
    assert found.comparators == {name: metrics.comparators[name] for name in fitted}
    assert (found.table2, found.learning) == (metrics.table2, metrics.learning)
    assert (found.made.threads, metrics.made.threads) == (1, 1)
    assert f"2 folds, 1 seeds, on {cluster.address}" in text.getvalue()
    assert not list((folder / "cluster/work").glob(".run-*")), "the marker of the run is gone"


def test_without_a_scheduler_its_address_is_named_within_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT_S", 0.2)
    for address, message in (
        ("localhost:1", "is not of the form tcp"),
        ("tcp://127.0.0.1:1", "no Dask scheduler answers"),
    ):
        with pytest.raises(UsageError, match=message):
            run(folder, "nowhere", scheduler=address)
    assert not (folder / "nowhere").exists()


WITH_A_WORKER = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from gliaflow_evaluation.runners import start_process

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, start_process, (context.SimpleQueue(),))
    busy = pool.submit(time.sleep, 60)
    while not busy.running():
        time.sleep(0.01)
    print(*pool._processes, flush=True)
    busy.result()
"""


def test_processes_end_when_the_run_is_killed(tmp_path: Path) -> None:
    """Not even SIGKILL leaves folds behind that continue to fit."""
    script = tmp_path / "script.py"
    script.write_text(WITH_A_WORKER)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.5)  # a future runs before its process has begun
        parent.kill()
    deadline = time.monotonic() + 30
    while _lives(worker):
        assert time.monotonic() < deadline, "it continued"
        time.sleep(0.1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
