"""The node: from images that arrive to answers that leave.

The life of one image:

1. ``scp.Listener`` accepts an association and the C-STORE request. ``guard`` bounds what the peer can send, and the
   data set goes straight into ``incoming`` of the ``spool.Spool``.
2. The image is moved to ``studies``, and when file and name are on the disk, the listener answers 0x0000. From here on
   a process that is killed loses nothing.
3. The loop below reads the study when it is quiet (``completeness.Arrivals``). It chooses the FLAIR series by the rules
   of the settings. A study without one is kept for ``dicom_incomplete_s``, since the series may still arrive, then
   deleted. A series that cannot be read is set aside with its reason (``aside``); one that is not complete waits.
4. The series goes to the pipeline as NIfTI bytes, under the name that its UID has in the spool. No header leaves.
5. The answer becomes DICOM objects, which are written to ``answers`` (``answers.keep_answer``). Only then the study's
   images are deleted. An answer to the same images and of the same bundle has the same UIDs, and then the bytes that
   were kept are sent again.
6. A ``delivery.Sender`` for each destination sends the objects until they are accepted. Delivered answers are deleted
   after ``dicom_keep_days``.

Logs, metrics and the broker's messages have the hashes of the spool only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from gliaflow.answer import Answer
from gliaflow.flair_rules import flair_rules
from gliaflow.flow import Flow, open_flow
from gliaflow.scans import Input
from gliaflow_plugins.dicom.choose import FlairRules, find_series
from gliaflow_plugins.dicom.series import DicomSeries
from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.folders import why_unwritable
from gliaflow_runtime.health import serve_health
from gliaflow_runtime.logs import where
from gliaflow_runtime.metrics import READY
from gliaflow_runtime.settings import Settings

from gliaflow_dicom.node import metrics
from gliaflow_dicom.node.answers import (
    MAX_REPEATS,
    Origin,
    delete_old,
    earlier_answer,
    finish_interrupted,
    keep_answer,
    kept_answers,
)
from gliaflow_dicom.node.aside import Kind, list_aside, set_aside, take_back
from gliaflow_dicom.node.completeness import ArchiveAway, Arrivals, count_in_archive
from gliaflow_dicom.node.delivery import Sender
from gliaflow_dicom.node.peers import keep_libraries_quiet, parse_destination, parse_peer
from gliaflow_dicom.node.scp import Listener
from gliaflow_dicom.node.spool import Limits, Spool, hashed
from gliaflow_dicom.objects.make import make_objects

POLL_S = 0.5
TIDY_S = 10.0
AT_ONCE = 16  # studies; after each round, the node looks for more
MAX_READS = 5  # of a study; reading it has then ended the process each time
AWAY_S = 5.0  # until the next attempt to reach the broker
KINDS: tuple[Kind, ...] = ("refused", "failed", "incomplete")
NO_ANSWER = re.compile(r"no (readable )?answer within")  # of the flow: no stage has judged the scan

log = structlog.get_logger()


@dataclass(frozen=True)
class Chosen:
    """A series that goes to the pipeline, and what its answer will be made from."""

    series: DicomSeries
    origin: Origin

    @property
    def item(self) -> Input:
        """It as the pipeline's input: its name and its patient are hashes."""
        name = f"{self.origin.series}{'' if self.series.echo_ms is None else f'-{self.series.echo_ms:g}'}"
        return Input(Path(name), name, self.origin.study, volume=self.series, warnings=self.series.warnings)


class Node:
    """One node on its spool. ``run`` returns at KeyboardInterrupt only.

    Raises
    ------
    UsageError: a setting is wrong, or another node uses the spool.
    OSError: the spool or the port cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        keep_libraries_quiet()
        self._settings = settings
        self._rules = replace(flair_rules() or FlairRules(), describe=False)
        self._archive = parse_peer(settings.dicom_pacs, "--pacs") if settings.dicom_pacs else None
        destinations = [parse_destination(text) for text in settings.dicom_to]
        if not destinations:
            raise UsageError("--to: name where the answers go, for example --to ORTHANC@localhost:4242")
        self._destinations = [str(each) for each in destinations]
        self._flow: Flow | None = None
        self._away = ""  # why the archive does not answer
        self._tidied = 0.0
        self._resources = ExitStack()
        with ExitStack() as resources:
            self.spool = Spool(settings.dicom_spool, _limits(settings))
            resources.callback(self.spool.close)
            finish_interrupted(self.spool)
            self._arrivals = Arrivals(settings.dicom_settle_s, self.spool.waiting())
            self._senders = []
            for destination in destinations:
                self._senders.append(Sender(settings, self.spool, destination))
                resources.callback(self._senders[-1].close)
            self.listener = Listener(settings, self.spool, self._arrivals)
            resources.callback(self.listener.close)
            resources.enter_context(serve_health(settings, self.ready))
            self._resources = resources.pop_all()

    def close(self) -> None:
        """Stop listening and sending."""
        self._resources.close()

    def ready(self) -> dict[str, bool]:
        """For ``/readyz``."""
        state = {
            "listener": self.listener.listens,
            "broker": self._flow is not None and self._flow.broker.connected,
            "spool": not self.spool.why_full() and not why_unwritable(self.spool.folder, 0),
        }
        READY.labels("dicom").set(all(state.values()))
        return state

    def run(self) -> None:
        """Answer studies until KeyboardInterrupt."""
        log.info(
            "listening",
            ae=self._settings.dicom_ae,
            host=self._settings.dicom_host,
            port=self.listener.port,
            to=self._destinations,
        )
        while True:
            try:
                with (
                    open_flow(self._settings, waiting=lambda reason: log.warning("waiting", reason=reason)) as flow,
                    self._connected(flow),
                ):
                    while True:
                        self.round(flow)
                        time.sleep(POLL_S)
            except BrokerError as error:
                log.warning("the broker is away; images are still received", reason=str(error))
            except OSError as error:
                log.error("the spool cannot be used", reason=str(error.strerror or error))
            time.sleep(AWAY_S)

    def round(self, flow: Flow) -> None:
        """Read the studies that are quiet, and have their series answered."""
        quiet = self._arrivals.quiet(self.spool.waiting())[:AT_ONCE]
        try:
            chosen = {each.item.name: each for study in quiet if (each := self._choose(study))}
            for answer in flow.submit_all([each.item for each in chosen.values()]) if chosen else ():
                with self._guarded(chosen[answer.scan].origin.study):
                    self._answered(chosen[answer.scan], answer)
        finally:
            for study in quiet:
                self.spool.end_reading(study)
        if quiet or time.monotonic() - self._tidied > TIDY_S:
            self._tidy()

    @contextmanager
    def _connected(self, flow: Flow) -> Iterator[None]:
        self._flow = flow
        try:
            yield
        finally:
            self._flow = None

    @contextmanager
    def _guarded(self, study: str) -> Iterator[None]:
        """Set the study aside after an error that nobody expected, so that the others are answered."""
        try:
            yield
        except (BrokerError, UsageError, OSError):
            raise
        except Exception as error:
            log.error("a study could not be answered", study=study[:12], error=where(error), exc_info=True)
            self._set_aside(study, "failed", f"an unexpected error: {where(error)}")

    def _choose(self, study: str) -> Chosen | None:
        """The study's FLAIR series, if it can be read and is complete."""
        with self._guarded(study):
            return self._try_to_choose(study)
        return None

    def _try_to_choose(self, study: str) -> Chosen | None:
        if (self.spool.aside / study).exists():  # more images of a study that was set aside
            take_back(self.spool.folder, study)
        if self.spool.begin_reading(study) > MAX_READS:
            self._set_aside(study, "failed", f"the process ended {MAX_READS} times while it read this study")
            return None
        received = self.spool.images(study)
        declared = self.spool.declared(study)
        rules = self._rules if declared is None else replace(self._rules, wanted=declared)
        found = find_series([self.spool.studies / study / name for name in received], rules)
        if not found.flair:
            self._no_flair(study, received)
            return None
        series = found.flair[0]  # the only one of a study
        folder = hashed(series.uid)
        images = sorted(name.rpartition("/")[2] for name in received if name.startswith(f"{folder}/"))
        origin = Origin(study, folder, images, received, time.time())
        if declared is None and (problem := self._why_incomplete(series, origin)):
            self._wait(study, problem)
        elif series.problem:
            self._set_aside(study, "refused", series.problem)
        elif declared is not None or not self._is_loop(origin):
            return Chosen(series, origin)
        return None

    def _no_flair(self, study: str, received: dict[str, int]) -> None:
        """Keep it for a while: the FLAIR series may be on its way. Then delete it."""
        left_s = self._settings.dicom_incomplete_s - self._arrivals.age_s(study)
        if left_s > 0 and not self.spool.why_full():
            self._arrivals.wait(study, left_s)
            return
        self.spool.delete_images(study, received)
        metrics.FORGOTTEN.inc()
        log.info("a study without FLAIR was deleted", study=study[:12], images=len(received))

    def _why_incomplete(self, series: DicomSeries, origin: Origin) -> str:
        """Why more images of the series are expected; empty: none are."""
        count = len(origin.images)
        if self._archive is not None:
            try:
                expected = count_in_archive(self._settings, self._archive, series.study, series.uid)
            except ArchiveAway as error:
                if not self._away:
                    log.warning("the archive of --pacs is away; studies wait", reason=str(error))
                self._away = str(error)
                return self._away
            self._away = ""
            return "" if expected == count else f"{count} images came, and the archive of --pacs has {expected}"
        if not self.spool.is_clean(origin.study, origin.series):
            return f"{count} images came; the association was aborted or lost, or the node refused an image of it"
        earlier = earlier_answer(self.spool, origin.series)
        missing = {*earlier.origin.images} - {*origin.images} if earlier else ()
        if earlier and missing:
            known = len(earlier.origin.images)
            return f"{len(missing)} of the {known} images are missing with which this series was answered before"
        return ""

    def _wait(self, study: str, problem: str) -> None:
        left_s = self._settings.dicom_incomplete_s - self._arrivals.age_s(study)
        if left_s > 0 or self._away:
            self._arrivals.wait(study, left_s if left_s > 0 else self._settings.dicom_incomplete_s)
            return
        remedy = "send the whole series again; or if no more images exist, gliaflow dicom retry"
        self._set_aside(study, "incomplete", f"{problem}: {remedy} {study[:12]}")

    def _is_loop(self, origin: Origin) -> bool:
        """Whether the same series has come too often: a PACS that sends the study for each change would never end."""
        earlier = earlier_answer(self.spool, origin.series)
        if earlier is None or earlier.origin.images != origin.images:
            return False
        if len(earlier.repeats()) < MAX_REPEATS:
            earlier.came_again()
            return False
        metrics.REPEATS_IGNORED.inc()
        log.warning(
            "a series came unchanged again, and was ignored: does the archive send a study again when an answer comes?",
            series=origin.series[:12],
            in_the_last_hour=MAX_REPEATS,
        )
        self.spool.delete_images(origin.study, origin.received)
        return True

    def _answered(self, chosen: Chosen, answer: Answer) -> None:
        """Keep the answer; or set the study aside, with the reason why there is none."""
        study = chosen.origin.study
        if answer.status == "failed" and NO_ANSWER.match(answer.reason):
            log.warning("no answer; the study is sent again", study=study[:12])
            self._arrivals.wait(study, self._settings.dicom_incomplete_s)
            return
        if answer.status == "failed":
            self._set_aside(study, "failed", answer.reason)
            return
        try:
            objects = make_objects(chosen.series, answer, capture=self._settings.dicom_capture)
        except ValueError as error:
            self._set_aside(study, "failed", str(error))
            return
        kept = keep_answer(self.spool, chosen.origin, objects)
        metrics.ANSWERED.inc()
        log.info(
            "answered",
            series=chosen.origin.series[:12],
            answer=kept.folder.name[:12],
            status=answer.status,
            images=len(chosen.origin.images),
            warnings=len(answer.warnings),
            seconds=answer.seconds,
        )

    def _set_aside(self, study: str, kind: Kind, reason: str) -> None:
        set_aside(self.spool.folder, study, kind, reason.replace(f"{self.spool.studies / study}/", ""))
        # the reason may quote a header, so the log does not have it
        log.error("a study was set aside: gliaflow dicom list shows why", study=study[:12], kind=kind)
        self._count_aside()

    def _count_aside(self) -> None:
        kinds = [each.kind for each in list_aside(self.spool.folder)]
        for kind in KINDS:
            metrics.SET_ASIDE.labels(kind).set(kinds.count(kind))

    def _tidy(self) -> None:
        """Delete old answers, and set the metrics."""
        self._tidied = time.monotonic()
        delete_old(self.spool, self._destinations, self._settings.dicom_keep_days * 86400)
        self.spool.count()
        self._count_aside()
        metrics.WAITING.set(len(self.spool.waiting()))
        open_answers = [each for each in kept_answers(self.spool) if not each.is_delivered(self._destinations)]
        metrics.UNDELIVERED.set(len(open_answers))
        metrics.UNDELIVERED_AGE.set(max((time.time() - each.origin.made for each in open_answers), default=0.0))
        metrics.STUCK.set(len({name for sender in self._senders for name in sender.stuck}))


def run_node(settings: Settings, stopped: Callable[[], Any]) -> None:
    """Run a node until KeyboardInterrupt, then call ``stopped`` and close it."""
    node = Node(settings)
    try:
        node.run()
    except KeyboardInterrupt:
        stopped()
    finally:
        node.close()


def _limits(settings: Settings) -> Limits:
    return Limits(
        total=int(settings.dicom_spool_gib * 2**30),
        free=int(settings.dicom_free_gib * 2**30),
        one=int(settings.dicom_object_mib * 2**20),
    )
