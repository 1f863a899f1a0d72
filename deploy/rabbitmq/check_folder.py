#!/usr/bin/env python3
"""Refuse to start the containers of one Compose project from a second folder.

    check_folder.py PROJECT

Two clones in folders of the same name have the same Compose project, so `docker compose up` in the second clone
replaces the containers of the first. This check runs before any other container starts. PROJECT is a folder in a volume
of the project: the first folder that starts writes its path there, and any other folder is refused. Nothing has
changed the first folder's queues then: `docker compose up` there starts its containers again.

Needs only the standard library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
HERE = "/deploy"  # where docker-compose.yml mounts deploy/rabbitmq
INSIDE = "/deploy/rabbitmq"  # what the path of that mount ends with, after the folder of docker-compose.yml


def main(arguments: list[str]) -> int:
    project = Path(arguments[0])
    folder = folder_of_clone(MOUNTS.read_text())
    refusal = check(project, folder, take_over=os.environ.get("GLIAFLOW_TAKE_OVER", "") not in ("", "0"))
    if refusal:
        print(refusal, file=sys.stderr)
    return 1 if refusal else 0


def check(project: Path, folder: str, *, take_over: bool) -> str:
    """The reason why this folder must not start the project's containers; empty: it may.

    Parameters
    ----------
    folder: the path of this clone. Empty: not known, so nothing is refused.
    take_over: let this folder replace the one that started first, which was moved or is no longer used.
    """
    owner = project / "folder"
    first = owner.read_text().strip() if owner.exists() else ""
    if not folder or first == folder:
        return ""
    if first and not take_over:
        return (
            f"The containers of this Compose project belong to the folder {first}, and this is {folder}.\n"
            f"They are stopped now. To start them again: docker compose up --wait, in {first}.\n"
            "To run both, give this folder another project and ports of its own, in its file .env:\n"
            "    COMPOSE_PROJECT_NAME=gliaflow-2\n    GLIAFLOW_AMQP_PORT=5673\n    GLIAFLOW_MANAGEMENT_PORT=15673\n"
            f"If you moved the folder, or no longer use {first}: GLIAFLOW_TAKE_OVER=1 docker compose up --wait"
        )
    owner.write_text(folder + "\n")
    return ""


def folder_of_clone(mounts: str) -> str:
    """The folder of docker-compose.yml on the host, from the text of /proc/self/mountinfo; empty: not known."""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] == HERE and fields[3].endswith(INSIDE):
            return fields[3].removesuffix(INSIDE).encode().decode("unicode_escape").encode("latin-1").decode() or "/"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
