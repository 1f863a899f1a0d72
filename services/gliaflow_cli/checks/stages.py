"""Checks of the stages that run on a broker."""

from __future__ import annotations

from gliaflow_cli.checks.outcome import Unseen, Wrong
from gliaflow_cli.client.management import Management, ManagementError


def check_killed(management: Management) -> str:
    """Whether a stage was killed, most often because it needed too much memory. Its container then starts it again."""
    try:
        killed = management.killed()
    except ManagementError as error:
        raise Unseen(str(error)) from None
    if killed:
        raise Wrong(*(f"{user} ({address}): {text}" for user, address, text in sorted(killed)))
    return "none since its container started"
