"""``GET /api/status``: what the console says about itself, the broker and the bundle that answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from gliaflow_console.api.status import read_status
from gliaflow_runtime.settings import Settings


def status(
    broker: str = "memory://",
    *,
    inside: Any = None,
    answers: tuple[tuple[str, str], ...] = (),
    running: tuple[str, ...] = (),
    problems: tuple[str, str, str] = ("", "", ""),
) -> dict[str, Any]:
    """The status of a console.

    Parameters
    ----------
    inside: the bundle of the stages in the console's process.
    answers: bundle and ``trained_on`` of the newest scans.
    running: the bundles of the stages that are connected to the broker.
    problems: of the stages, of the sender and of the observer.
    """
    of_stages, of_sender, of_observer = problems
    strip = {"stages": [], "left_s": None, "dead": 0, "problem": of_stages}
    scans = [SimpleNamespace(bundle=bundle, trained_on=trained_on) for bundle, trained_on in answers]
    console: Any = SimpleNamespace(
        settings=Settings(broker=broker, console_upload_mib=2, console_gib=0.5),
        flow=SimpleNamespace(stages=inside and SimpleNamespace(bundle=inside)),
        stages=SimpleNamespace(snapshot=lambda: strip, bundles=running),
        sender=SimpleNamespace(problem=of_sender),
        observer=SimpleNamespace(problem=of_observer),
        store=SimpleNamespace(newest=lambda limit: scans[:limit]),
    )
    return read_status(console)


def test_the_broker_is_named_without_user_and_password() -> None:
    assert status("amqps://user:secret@one:5671,two:5671/flow?heartbeat=5")["broker"] == "one:5671,two:5671"
    assert status()["broker"] == "memory://"


def test_a_bundle_that_was_trained_on_phantoms_has_a_notice() -> None:
    now = status(inside=SimpleNamespace(id="demo@1", trained_on="phantoms"))
    assert (now["bundle"], now["trained_on"]) == ("demo@1", "phantoms")
    assert "say nothing about a patient" in now["notice"]
    assert status(inside=SimpleNamespace(id="own@1", trained_on="patients"))["notice"] == ""


@pytest.mark.parametrize(
    ("answers", "running", "served"),
    [
        ((), (), ("", "")),
        ((), ("a@1",), ("a@1", "")),
        ((("", ""), ("b@1", "phantoms"), ("a@1", "")), ("a@1",), ("b@1", "phantoms")),
    ],
    ids=["not known", "of the connected stages", "of the latest answer"],
)
def test_on_a_broker_the_bundle_is_that_of_the_latest_answer(
    answers: tuple[tuple[str, str], ...], running: tuple[str, ...], served: tuple[str, str]
) -> None:
    now = status("amqp://broker", answers=answers, running=running)
    assert (now["bundle"], now["trained_on"]) == served


def test_all_problems_are_named_once() -> None:
    assert status(problems=("no connection", "no connection", "no right"))["problem"] == "no connection; no right"
    assert status()["problem"] == ""


def test_the_limits_are_in_bytes() -> None:
    assert status()["limits"] == {"upload_bytes": 2**21, "scans": 500, "bytes": 2**29, "hours": 72.0}
