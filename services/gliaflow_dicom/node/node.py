"""The node: from images that arrive to answers that leave.

The life of one image:

1. ``scp.Listener`` accepts an association and the C-STORE request. ``guard`` bounds what the peer can send, and the
   data set goes straight into ``incoming`` of the ``spool.Spool``.
2. The image is moved to ``studies``, and when file and name are on the disk, the listener answers 0x0000. From here on
   a process that is killed loses nothing.
3. The loop below reads the study when it is quiet (``completeness.Arrivals``). It chooses the FLAIR series by the rules
   of the settings. A series that cannot be read is set aside with its reason (``aside``); one that is not complete
   waits for ``dicom_incomplete_s``, and is then set aside too. A study without a FLAIR series waits as long, since the
   series may still arrive. Then it is deleted, if all its files can be read and all its series are clean.
   A study that lacks a sequence which the settings name waits as long, and is then answered without it.
4. The series goes to the pipeline as NIfTI bytes, and so do the other sequences, under the name that the FLAIR's UID
   has in the spool. No header leaves.
5. The answer becomes DICOM objects, which are written to ``answers`` (``answers.keep_answer``). Only then the study's
   images are deleted. An answer to the same images and of the same bundle has the same UIDs, and then the bytes that
   were kept are sent again.
6. A ``delivery.Sender`` for each destination sends the objects until they are accepted. Delivered answers are deleted
   after ``dicom_keep_days``.

Logs, metrics and the broker's messages have the hashes of the spool only.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import structlog
from gliaflow.answer import Answer
from gliaflow.flair_rules import flair_rules
from gliaflow.flow import Flow
from gliaflow.opening import open_flow
from gliaflow.sequences import wanted_sequences
from gliaflow_plugins.dicom.choose import FlairRules, FoundSeries, find_series
from gliaflow_plugins.dicom.series import DicomSeries
from gliaflow_plugins.left_out import LeftOut
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
    AnswerOrigin,
    delete_old,
    earlier_answer,
    finish_interrupted,
    keep_answer,
)
from gliaflow_dicom.node.aside import Kind, list_aside, set_aside, take_back
from gliaflow_dicom.node.chosen import Chosen, origin_of
from gliaflow_dicom.node.completeness import ArchiveCounts, Arrivals
from gliaflow_dicom.node.delivery import Sender
from gliaflow_dicom.node.peers import PeerAway, keep_libraries_quiet, named, parse_destination, parse_peer
from gliaflow_dicom.node.scp import Listener
from gliaflow_dicom.node.spool import Spool, SpoolLimits
from gliaflow_dicom.objects.make import make_objects

POLL_S = 0.5
TIDY_S = 10.0
AT_ONCE = 16  # studies; after each round, the node looks for more
MAX_READS = 5  # of a study; reading it has then ended the process each time
AWAY_S = 5.0  # until the next attempt to reach the broker
KINDS: tuple[Kind, ...] = ("refused", "failed", "incomplete")
SERIES, FILE = "DICOM series", "DICOM file"  # kinds of what ``find_series`` leaves out
BROKEN_OFF = "the association was aborted or lost, or the node refused an image of it"
KILLED = "the node was killed while these images arrived: images may be missing"
KILLED_SETTLES = 6  # times dicom_settle_s that such a series waits to be sent again
NO_ANSWER = re.compile(r"no (readable )?answer within")  # of the flow: no stage has judged the scan

log = structlog.get_logger()


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
        wanted = wanted_sequences(settings)
        self._rules = replace(flair_rules() or FlairRules(), describe=False, sequences=wanted)
        archive = parse_peer(settings.dicom_pacs, "--pacs") if settings.dicom_pacs else None
        self._archive = ArchiveCounts(settings, archive) if archive else None
        destinations = [parse_destination(text) for text in settings.dicom_to]
        if not destinations:
            raise UsageError(f"{named('--to')}: name where the answers go, for example ORTHANC@localhost:4242")
        self._destinations = [str(each) for each in destinations]
        self._flow: Flow | None = None
        self._tidied = 0.0
        self._resources = ExitStack()
        with ExitStack() as resources:
            self.spool = Spool(settings.dicom_spool, SpoolLimits.of(settings))
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
        if self._archive is not None:
            threading.Thread(target=self._archive.check, name="DICOM archive check", daemon=True).start()

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
                        self._round_on_disk(flow)
                        time.sleep(POLL_S)
            except BrokerError as error:
                log.warning("the broker is away; images are still received", reason=str(error))
            except OSError as error:
                log.error("the pipeline cannot be opened", reason=str(error.strerror or error))
            time.sleep(AWAY_S)

    def _round_on_disk(self, flow: Flow) -> None:
        try:
            self.round(flow)
        except OSError as error:
            log.error("the spool cannot be used", reason=self.spool.why_full() or str(error.strerror or error))
            time.sleep(AWAY_S)

    def round(self, flow: Flow) -> None:
        """Read the studies that are quiet, and have their series answered."""
        quiet = self._arrivals.quiet(self.spool.waiting())
        suspects = [study for study in quiet if self.spool.unfinished_reads(study)]
        batch = suspects[:1] or quiet[:AT_ONCE]  # one that ends the process again takes no other study with it
        if self._archive is not None:
            self._archive.begin_round()
        try:
            chosen = {each.item.name: each for study in batch if (each := self._choose(study))}
            for answer in flow.submit_all([each.item for each in chosen.values()]) if chosen else ():
                with self._guarded(chosen[answer.scan].origin.study):
                    self._answered(chosen[answer.scan], answer)
        finally:
            for study in batch:
                self.spool.end_reading(study)
            if batch or time.monotonic() - self._tidied > TIDY_S:
                self._tidy()  # also after an error: it makes room

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
        with self._guarded(study), suppress(PeerAway):
            return self._try_to_choose(study)
        return None

    def _try_to_choose(self, study: str) -> Chosen | None:
        if (self.spool.aside / study).exists():  # more images of a study that was set aside
            with self.spool.changing:
                take_back(self.spool.folder, study)
        if self.spool.begin_reading(study) > MAX_READS:
            self._set_aside(study, "failed", f"the process ended {MAX_READS} times while it read this study")
            return None
        received = self.spool.images(study)
        declared = self.spool.declared(study)
        rules = self._rules if declared is None else replace(self._rules, wanted=declared, must_match=True)
        found = self._find(study, received, rules)
        if not found.flair:
            self._no_flair(study, received, found.left_out, declared)
            return None
        series = found.flair[0]  # the only one of a study
        origin = origin_of(study, series, received)
        if declared is None and (problem := self._why_any_incomplete(series, origin)):
            self._wait(study, problem)
        elif series.problem:
            self._set_aside(study, "refused", series.problem)
        elif declared is None and self._may_get_sequences(study, series):
            self._arrivals.wait(study, self._settings.dicom_incomplete_s - self._arrivals.age_s(study))
        elif declared is not None or not self._is_loop(origin):
            killed = self._archive is None and self.spool.ending(study, origin.series) == "killed"
            return Chosen(replace(series, warnings=(*series.warnings, KILLED)) if killed else series, origin)
        return None

    def _find(self, study: str, received: dict[str, int], rules: FlairRules) -> FoundSeries:
        return find_series([self.spool.studies / study / name for name in received], rules)

    def _no_flair(
        self, study: str, received: dict[str, int], left_out: list[LeftOut], declared: tuple[str, ...] | None
    ) -> None:
        """Keep it for a while: the FLAIR series may be on its way. Then delete it, or set it aside."""
        if declared is not None:
            listing = "; ".join(each.why for each in left_out if each.kind in (SERIES, FILE))
            self._set_aside(study, "refused", f"no series is FLAIR: {listing}. Choose one with --series, or delete it")
            return
        if problem := self._why_kept(study, received, left_out):
            self._wait(study, problem)
            return
        left_s = self._settings.dicom_incomplete_s - self._arrivals.age_s(study)
        if left_s > 0 and not self.spool.why_full():
            self._arrivals.wait(study, left_s)
            return
        self.spool.delete_images(study, received)
        metrics.FORGOTTEN.inc()
        log.info("a study without FLAIR was deleted", study=study[:12], images=len(received))

    def _why_kept(self, study: str, received: dict[str, int], left_out: list[LeftOut]) -> str:
        """Why a study without a FLAIR series may have one, were all its images there; empty: it has none."""
        for short in self._find(study, received, replace(self._rules, min_slices=1)).flair:
            if problem := self._why_incomplete(short, origin_of(study, short, received)):
                return problem
        if unreadable := [each for each in left_out if each.kind == FILE]:
            first = f"{unreadable[0].path.name}: {unreadable[0].why}"
            return f"no FLAIR series came, and {len(unreadable)} of {len(received)} images cannot be read ({first})"
        series = {name.partition("/")[0] for name in received}
        if any(self.spool.ending(study, each) != "clean" for each in series):
            return f"no FLAIR series is among the {len(received)} images that came; {BROKEN_OFF}"
        return ""

    def _why_incomplete(self, series: DicomSeries, origin: AnswerOrigin) -> str:
        """Why more images of the series are expected; empty: none are. Raises PeerAway."""
        count = len(origin.images)
        if self._archive is not None:
            if self._archive.failed:  # in this round; in the next, this study comes before the one that failed
                raise PeerAway
            try:
                expected = self._archive.count(series.study, series.uid)
            except PeerAway:
                self._arrivals.wait(origin.study, self._settings.dicom_incomplete_s)
                raise
            return "" if expected == count else f"{count} images came, and the archive of --pacs has {expected}"
        ending = self.spool.ending(origin.study, origin.series)
        if ending == "broken":
            return f"{count} images came; {BROKEN_OFF}"
        if ending == "killed" and self._arrivals.age_s(origin.study) < KILLED_SETTLES * self._settings.dicom_settle_s:
            return f"{count} images came; {KILLED}"
        earlier = earlier_answer(self.spool, origin.series)
        missing = {*earlier.origin.images} - {*origin.images} if earlier else ()
        if earlier and missing:
            known = len(earlier.origin.images)
            return f"these {count} images belong to a series that was answered with {known}; {len(missing)} are missing"
        return ""

    def _why_any_incomplete(self, series: DicomSeries, origin: AnswerOrigin) -> str:
        """Why more images of the series or of its sequences are expected; empty: none are. Raises PeerAway."""
        if problem := self._why_incomplete(series, origin):
            return problem
        for name, each in series.sequences.items():
            if problem := self._why_incomplete(each, origin_of(origin.study, each, origin.received)):
                return f"{name}: {problem}"
        return ""

    def _may_get_sequences(self, study: str, series: DicomSeries) -> bool:
        """Whether a wanted sequence is not there, and its images may be on their way."""
        known = {*series.sequences, *series.sequence_problems}
        late = self._arrivals.age_s(study) >= self._settings.dicom_incomplete_s or self.spool.why_full()
        return not {*self._rules.sequences} <= known and not late

    def _wait(self, study: str, problem: str) -> None:
        left_s = self._settings.dicom_incomplete_s - self._arrivals.age_s(study)
        if left_s > 0:
            self._arrivals.wait(study, left_s)
            return
        remedy = "send the whole series again; or if no more images exist, gliaflow dicom retry"
        self._set_aside(study, "incomplete", f"{problem}: {remedy} {study[:12]}")

    def _is_loop(self, origin: AnswerOrigin) -> bool:
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
        with self.spool.changing:
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
        open_answers = delete_old(self.spool, self._destinations, self._settings.dicom_keep_days * 86400)
        self.spool.count_again()
        self._count_aside()
        metrics.WAITING.set(len(self.spool.waiting()))
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
