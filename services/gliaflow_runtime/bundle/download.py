"""A bundle behind a URL (``s3://bucket/bundles/name``): fetched once, and kept in a folder named after its digest.

The manifest is read anew each time, so a bundle that was replaced is noticed; files that are there and right are not.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import fsspec

from gliaflow_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, BundleError, parse_manifest
from gliaflow_runtime.storage_errors import in_words

CHUNK = 2**22
MAX_FILES = 64


def fetch_bundle(url: str, cache: Path) -> Path:
    """The folder under ``cache`` that holds the bundle, complete.

    Raises
    ------
    BundleError: the store cannot be read, a file is missing, too large or not the one that the manifest vouches for,
        or ``cache`` cannot be written.
    """
    url = url.rstrip("/")
    raw = bytearray()
    _read(f"{url}/{MANIFEST}", MAX_MANIFEST_BYTES, raw.extend)
    files = parse_manifest(bytes(raw), f"{url}/{MANIFEST}").files
    if len(files) > MAX_FILES or any(Path(name).name != name or name in ("..", MANIFEST) for name in files):
        raise BundleError(f"{url}/{MANIFEST}: files: expected at most {MAX_FILES} plain names of files")
    folder = cache / hashlib.sha256(raw).hexdigest()
    if _complete(folder, files):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=cache) as name:
            part = Path(name) / "bundle"
            part.mkdir()
            (part / MANIFEST).write_bytes(raw)
            for file, digest in files.items():
                with (part / file).open("wb") as out:
                    found = _copy(f"{url}/{file}", out)
                if found != digest:
                    raise BundleError(
                        f"{url}/{file}: its sha256 is {found[:12]}…, the manifest says {digest[:12]}…: "
                        "the file was changed or cut short; copy the bundle again"
                    )
            if folder.exists() and not _complete(folder, files):
                shutil.rmtree(folder)
            if not folder.exists():
                part.rename(folder)
    except OSError as error:
        if not _complete(folder, files):  # another process may have been quicker
            raise BundleError(f"{cache}: {error.strerror or error}: GLIAFLOW_STATE names where it is kept") from None
    return folder


def _complete(folder: Path, files: dict[str, str]) -> bool:
    """Whether each file is there and is the right one."""
    try:
        for name, digest in files.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
    except OSError:
        return False
    return (folder / MANIFEST).is_file()


def _copy(url: str, out: IO[bytes]) -> str:
    """Copy a file of the bundle; returns its SHA-256."""
    digest = hashlib.sha256()

    def take(data: bytes) -> None:
        digest.update(data)
        out.write(data)

    _read(url, MAX_MODEL_BYTES, take)
    return digest.hexdigest()


def _read(url: str, limit: int, take: Callable[[bytes], Any]) -> None:
    """Pass a file on, piece by piece; its size is looked at before anything is read, and counted while it is."""
    too_large = BundleError(f"{url}: over the limit of {limit} bytes")
    try:
        with fsspec.open(url, "rb").open() as file:
            if (getattr(file, "size", None) or 0) > limit:
                raise too_large
            total = 0
            while data := file.read(CHUNK):
                total += len(data)
                if total > limit:
                    raise too_large
                take(data)
    except BundleError:
        raise
    except Exception as error:  # each protocol has errors of its own
        hint = ""
        if isinstance(error, FileNotFoundError) and url.endswith(MANIFEST):
            hint = " (a bundle is a folder that `gliaflow train` wrote)"
        raise BundleError(f"{url}: {in_words(error)}{hint}") from None
