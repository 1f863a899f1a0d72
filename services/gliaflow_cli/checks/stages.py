"""Checks of the stages, the DICOM node and the console that run on a broker."""

from __future__ import annotations

from gliaflow_client.management import Management, ManagementError
from gliaflow_runtime.version import VERSION

from gliaflow_cli.checks.outcome import Unseen, Wrong

START = {"dicom": "docker compose --profile dicom up --wait", "console": "docker compose up --wait console"}


def check_killed(management: Management) -> str:
    """Whether a stage was killed, most often because it needed too much memory. Its container then starts it again."""
    try:
        killed = management.killed()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    if killed:
        raise Wrong(*(f"{user} ({address}): {text}" for user, address, text in sorted(killed)))
    return "none since its container started"


def check_client_service(management: Management, user: str) -> str:
    """Whether the DICOM node or the console, if one is connected as this user, has this version.

    A pipeline without one is complete too.
    """
    try:
        versions = management.client_services()[user]
    except ManagementError as error:
        raise Unseen(str(error)) from None
    if not versions:
        return f"none connected as the user {user}; to start one: {START[user]}"
    if others := sorted(set(versions) - {VERSION}):
        raise Wrong(f"it is gliaflow {', '.join(others)}, but this is {VERSION}: give both one version")
    return f"{len(versions)} connected, gliaflow {VERSION}"
