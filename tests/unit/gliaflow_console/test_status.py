"""``GET /api/status``: what the console says about itself, the broker and the bundle that answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gliaflow_console.api.status import read_status
from gliaflow_console.served import ServedBundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.settings import Settings


class NoBundle:
    """Networks whose bundle cannot be loaded."""

    @property
    def bundle(self) -> Any:
        raise BundleError("there is no such file")


def a_console(
    broker: str = "memory://",
    *,
    inside: Any = None,
    running: tuple[str, ...] = (),
    own: Any = None,
    problems: tuple[str, str, str] = ("", "", ""),
    trouble: str = "",
) -> Any:
    """A console.

    Parameters
    ----------
    inside: the bundle of the stages in the console's process.
    running: the bundles of the stages that are connected to the broker.
    own: the bundle of the console's settings.
    problems: of the stages, of the sender and of the observer.
    trouble: why the broker is away.
    """
    of_stages, of_sender, of_observer = problems
    strip = {"stages": [], "left_s": None, "dead": 0, "problem": of_stages}
    console: Any = SimpleNamespace(
        settings=Settings(broker=broker, console_upload_mib=2, console_gib=0.5),
        flow=SimpleNamespace(stages=inside and SimpleNamespace(bundle=inside), broker=SimpleNamespace(trouble=trouble)),
        stages=SimpleNamespace(snapshot=lambda: strip, bundles=running),
        sender=SimpleNamespace(problem=of_sender),
        observer=SimpleNamespace(problem=of_observer),
        store=Scans(),
    )
    networks: Any = SimpleNamespace(bundle=own) if own else NoBundle()
    console.served = ServedBundle(console.flow, console.store, console.stages, networks)
    return console


class Scans(list[Any]):
    """The scans of a store: bundles and what they were trained on, the newest first."""

    sequences = ("t1ce",)

    def newest(self, limit: int) -> list[Any]:
        return [SimpleNamespace(bundle=bundle, trained_on=trained_on) for bundle, trained_on in self[:limit]]


def status(broker: str = "memory://", **about: Any) -> dict[str, Any]:
    return read_status(a_console(broker, **about))


PHANTOMS = SimpleNamespace(id="demo@1", trained_on="phantoms")
FAILED = ("", "")


def test_the_broker_is_named_without_user_and_password() -> None:
    assert status("amqps://user:secret@one:5671,two:5671/flow?heartbeat=5")["broker"] == "one:5671,two:5671"
    assert status()["broker"] == "memory://"


def test_a_bundle_that_was_trained_on_phantoms_has_a_notice() -> None:
    now = status(inside=SimpleNamespace(id="demo@1", trained_on="phantoms"))
    assert (now["bundle"], now["trained_on"]) == ("demo@1", "phantoms")
    assert "say nothing about a patient" in now["notice"]
    assert status(inside=SimpleNamespace(id="own@1", trained_on="patients"))["notice"] == ""


def test_on_a_broker_the_bundle_is_that_of_the_latest_answer_which_is_remembered() -> None:
    console = a_console("amqp://broker", running=("a@1",))
    assert read_status(console)["bundle"] == "a@1"
    console.store[:] = [FAILED] * 300 + [("b@1", "phantoms"), ("a@1", "patients")]
    for _ in range(2):
        now = read_status(console)
        assert (now["bundle"], now["trained_on"]) == ("b@1", "phantoms")
        assert "say nothing about a patient" in now["notice"]
        console.store[:] = [FAILED] * 500  # the answered scans are dropped


def test_before_the_first_answer_the_bundle_is_compared_with_the_consoles_own() -> None:
    now = status("amqp://broker", running=("demo@1",), own=PHANTOMS)
    assert (now["bundle"], now["trained_on"]) == ("demo@1", "phantoms")
    assert now["notice"].startswith("This bundle was trained on phantoms")
    now = status("amqp://broker", running=("other@1",), own=PHANTOMS)
    assert (now["bundle"], now["trained_on"], now["notice"]) == ("other@1", "", "")


def test_while_the_bundle_of_the_stages_is_not_known_the_notice_is_about_the_consoles_own() -> None:
    now = status("amqp://broker", own=PHANTOMS)
    assert (now["bundle"], now["trained_on"]) == ("", "")
    assert "The console's own bundle (demo@1) was trained on phantoms" in now["notice"]
    assert status("amqp://broker", own=SimpleNamespace(id="own@1", trained_on="patients"))["notice"] == ""
    assert status("amqp://broker")["notice"] == "", "the console has no bundle"


def test_all_problems_are_named_once() -> None:
    assert status(problems=("no connection", "no connection", "no right"))["problem"] == "no connection; no right"
    assert status()["problem"] == ""


def test_while_the_broker_is_away_its_trouble_is_the_only_problem() -> None:
    away = status(problems=("no connection", "scans wait: no connection", "answers wait"), trouble="no connection")
    assert away["problem"] == "no connection"


def test_it_says_whether_answers_outlive_the_process() -> None:
    console = a_console()
    assert read_status(console)["kept"] is False
    console.settings = Settings(console_folder="answers")
    assert read_status(console)["kept"] is True


def test_the_limits_are_in_bytes() -> None:
    assert status()["limits"] == {"upload_bytes": 2**21, "scans": 500, "bytes": 2**29, "hours": 72.0}
