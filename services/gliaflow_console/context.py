"""What all handlers of the console share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from gliaflow.flow import Flow
from gliaflow_runtime.settings import Settings

from gliaflow_console.turn import Turn

if TYPE_CHECKING:
    from gliaflow_console.networks import Networks
    from gliaflow_console.observer import Observer
    from gliaflow_console.sender import ScanSender
    from gliaflow_console.served import ServedBundle
    from gliaflow_console.stages import StageStrip
    from gliaflow_console.store import ScanStore


@dataclass(frozen=True)
class Console:
    """A running console.

    Parameters
    ----------
    flow: the pipeline. All threads may use its broker; only the sender's thread uses the flow itself.
    store: the scans and their answers.
    stages: the state of the queues and the stages.
    observer, sender: the threads that receive answers and send scans, for their ``problem``.
    networks: the bundle's networks, for feature maps and synthetic features.
    stopping: set when the process ends.
    reading: one scan or mask is unpacked at a time, so that memory is bounded.
    """

    settings: Settings
    flow: Flow
    store: ScanStore
    stages: StageStrip
    observer: Observer
    sender: ScanSender
    networks: Networks
    stopping: threading.Event = field(default_factory=threading.Event)
    reading: Turn = field(default_factory=Turn)

    @cached_property
    def served(self) -> ServedBundle:
        """Which bundle answers the scans."""
        from gliaflow_console.served import ServedBundle

        return ServedBundle(self.flow, self.store, self.stages, self.networks)
