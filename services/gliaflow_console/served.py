"""Which bundle answers the scans, as far as the console knows."""

from __future__ import annotations

from dataclasses import dataclass

from gliaflow.flow import Flow
from gliaflow_client.summary import ON_PHANTOMS, PHANTOMS
from gliaflow_runtime.errors import UsageError

from gliaflow_console.networks import Networks
from gliaflow_console.stages import StageStrip
from gliaflow_console.store import ScanStore


@dataclass(frozen=True)
class Served:
    """The bundle's id and what it was trained on; empty: not known. ``notice``: what its answers are worth."""

    bundle: str = ""
    trained_on: str = ""
    notice: str = ""


class ServedBundle:
    """Finds the bundle: that of the stages in this process, or of the latest answer, or of the stages on the broker.

    The bundle of the latest answer is remembered: failed scans do not name one, and the scan may be deleted.
    """

    def __init__(self, flow: Flow, store: ScanStore, stages: StageStrip, networks: Networks) -> None:
        self._flow, self._store, self._stages, self._networks = flow, store, stages, networks
        self._answered: tuple[str, str] | None = None

    def read(self) -> Served:
        """The bundle as it is known now. It never waits for the broker."""
        if (stages := self._flow.stages) is not None:
            return _served(stages.bundle.id, stages.bundle.trained_on)
        for scan in self._store.newest(len(self._store)):
            if scan.bundle:
                self._answered = scan.bundle, scan.trained_on
                break
        if self._answered is not None:
            return _served(*self._answered)
        running = next(iter(self._stages.bundles), "")
        try:
            own = self._networks.bundle
        except UsageError:
            return Served(running)
        if running:
            return _served(running, own.trained_on if running == own.id else "")
        if own.trained_on != PHANTOMS:
            return Served()
        return Served(
            notice=f"No scan is answered yet, so the bundle of the stages is not known. The console's own bundle "
            f"({own.id}) was trained on phantoms (drawings of scans): its answers say nothing about a patient."
        )


def _served(bundle: str, trained_on: str) -> Served:
    return Served(bundle, trained_on, ON_PHANTOMS if trained_on == PHANTOMS else "")
