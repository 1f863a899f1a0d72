"""The dead letters of ``memory://`` as files, so that a later process can read them."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from gliaflow_runtime.broker.interface import BrokerError
from gliaflow_runtime.files import private_folder, whole_file

KEPT_LETTERS, KEPT_BYTES = 1000, 2**30  # beyond either, the oldest letters are deleted
LETTER = re.compile(r"\d{20}-[0-9a-f]{8}(-(?P<queue>[\w.-]+\.dead))?")  # a file's name; version 0.1 left out the queue
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
AFTER_PRUNING = 0.9  # of both, so that not each further letter lists the folder again


@dataclass(frozen=True)
class StoredLetter:
    """A dead letter, as its file has it."""

    key: str
    body: bytes
    message_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class LetterFolder:
    """A folder with one msgpack map for each dead letter. The name has time and queue, so that a start reads no file.

    Letters are whole scans, so the folder is for its user alone. Several processes may share it. Each counts the
    letters of the others when it reaches a limit itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[Path, int] = {}  # of the files that are known

    def list(self) -> list[tuple[str, Path]]:
        """The queue and the file of each letter, oldest first."""
        self._sizes = {}
        letters = []
        if self._path.is_dir():
            with contextlib.suppress(OSError):  # of another user: only writing into it is refused
                private_folder(self._path)
        for file in sorted(self._path.glob("*.msgpack")):
            if match := LETTER.fullmatch(file.stem):
                with contextlib.suppress(OSError, BrokerError):  # another process deleted it, or it is not a letter
                    file = file if match["queue"] else _with_queue(file)
                    self._sizes[file] = file.stat().st_size
                    letters.append((file.stem.split("-", 2)[2], file))
        return letters

    def write(self, queue: str, letter: StoredLetter) -> Path:
        """Keep a letter of this queue; returns its file. Raises OSError: the disk is full, for example."""
        file = private_folder(self._path) / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}-{queue}.msgpack"
        document = {"key": letter.key, "id": letter.message_id, "headers": letter.headers, "body": letter.body}
        content = msgpack.packb(document)
        with whole_file(file) as part, os.fdopen(os.open(part, NEW, 0o600), "wb") as open_part:
            open_part.write(content)
        self._sizes[file] = len(content)
        return file

    def prune(self) -> Collection[Path] | None:
        """Delete the oldest letters beyond KEPT_LETTERS or KEPT_BYTES. Returns the files that are left; None: all."""
        if len(self._sizes) <= KEPT_LETTERS and sum(self._sizes.values()) <= KEPT_BYTES:
            return None
        self.list()  # other processes have written and deleted letters
        count, size = len(self._sizes), sum(self._sizes.values())
        for file in list(self._sizes):
            if count <= AFTER_PRUNING * KEPT_LETTERS and size <= AFTER_PRUNING * KEPT_BYTES:
                break
            file.unlink(missing_ok=True)
            count, size = count - 1, size - self._sizes.pop(file)
        return self._sizes.keys()


def read_letter(file: Path) -> StoredLetter:
    """Read a dead letter. Raises BrokerError: the file is gone, or is not a dead letter of gliaflow."""
    document = _read(file)
    return StoredLetter(document["key"], document["body"], document["id"], document["headers"])


def _with_queue(file: Path) -> Path:
    """Rename a file of version 0.1, which had the queue in its map."""
    name = f"{file.stem}-{_read(file).get('queue')}"
    if not LETTER.fullmatch(name):
        raise BrokerError(f"dead letter {file}: not a gliaflow file")
    return file.rename(file.with_name(f"{name}.msgpack"))


def _read(file: Path) -> dict[str, Any]:
    try:
        document = msgpack.unpackb(file.read_bytes())
    except (OSError, ValueError, msgpack.UnpackException) as error:
        raise BrokerError(f"dead letter {file}: {error or type(error).__name__}") from None
    if not isinstance(document, dict) or not document.keys() >= {"key", "id", "headers", "body"}:
        raise BrokerError(f"dead letter {file}: not a gliaflow file")
    return document
