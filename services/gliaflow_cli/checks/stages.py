"""Checks of the stages, and of the DICOM node, that run on a broker."""

from __future__ import annotations

from gliaflow_client.management import Management, ManagementError
from gliaflow_runtime.version import VERSION

from gliaflow_cli.checks.outcome import Unseen, Wrong


def check_killed(management: Management) -> str:
    """Whether a stage was killed, most often because it needed too much memory. Its container then starts it again."""
    try:
        killed = management.killed()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    if killed:
        raise Wrong(*(f"{user} ({address}): {text}" for user, address, text in sorted(killed)))
    return "none since its container started"


def check_dicom_node(management: Management) -> str:
    """Whether the DICOM node, if one is connected, has this version. A pipeline without one is complete too."""
    try:
        versions = management.dicom_nodes()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    if not versions:
        return "none connected as the user dicom; to start one: docker compose --profile dicom up --wait"
    if others := sorted(set(versions) - {VERSION}):
        raise Wrong(f"it is gliaflow {', '.join(others)}, but this is {VERSION}: give both one version")
    return f"{len(versions)} connected, gliaflow {VERSION}"
