"""Sends the objects of an answer to one peer by C-STORE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gliaflow_runtime.settings import Settings

from gliaflow_dicom.node.peers import (
    UNCOMPRESSED,
    NotAccepted,
    Peer,
    PeerAway,
    associated,
    calling_tls,
    check_peer,
    why_away,
)


class StoreUser:
    """Raises UsageError: a TLS file cannot be used."""

    def __init__(self, settings: Settings, peer: Peer) -> None:
        self._settings, self._peer = settings, peer
        if peer.tls:
            calling_tls(settings)

    def check(self) -> None:
        """Raises PeerAway."""
        check_peer(self._settings, self._peer)

    def send(self, paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, str]]]:
        """Give each path once it is accepted, with a warning for the log.

        Raises
        ------
        PeerAway: the peer accepts no association.
        NotAccepted: it accepted the association, and then not all objects.
        """
        from pydicom import dcmread

        datasets = [dcmread(path) for path in paths]
        contexts = [
            (sop_class, list(syntaxes))
            for each in datasets
            for sop_class in [each.SOPClassUID]
            for syntaxes in ({each.file_meta.TransferSyntaxUID}, UNCOMPRESSED)
        ]
        refused = ""
        with associated(self._settings, self._peer, contexts) as association:
            if reason := why_away(association):
                raise PeerAway(reason)
            if not association.is_established:
                raise NotAccepted("it accepts none of the objects' SOP classes")
            for path, dataset in zip(paths, datasets, strict=True):
                try:
                    status = association.send_c_store(dataset).get("Status")
                except (ValueError, AttributeError):
                    refused = refused or f"it does not accept the SOP class of {path.name}"
                    continue
                except RuntimeError:  # the association has ended
                    status = None
                if status is None:
                    raise NotAccepted(
                        f"the connection was lost, or no answer came within {self._settings.dicom_idle_s:g} s, "
                        f"for {path.name}"
                    )
                if status == 0 or status & 0xF000 == 0xB000:
                    yield path, {"status": f"{status:#06x}"} if status else {}
                else:
                    room = ", it has no room" if status & 0xFF00 == 0xA700 else ""
                    refused = refused or f"status {status:#06x}{room}, for {path.name}"
        if refused:
            raise NotAccepted(refused)
