"""Download a bundle from a URL (``s3://bucket/bundles/name``) into a folder that is named after its digest.

The manifest is downloaded each time, so a replaced bundle is noticed; files that are already there are not.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec

from gliaflow_runtime.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_BYTES,
    BundleError,
    check_digest,
    parse_manifest,
)
from gliaflow_runtime.errors import describe_error
from gliaflow_runtime.files import private_folder

CHUNK = 2**22
MAX_FILES = 64


def fetch_bundle(url: str, cache: Path) -> Path:
    """The folder under ``cache`` with the complete bundle.

    Raises
    ------
    BundleError: the store cannot be read, a file is missing, too large or has another digest than in the manifest,
        or ``cache`` cannot be written.
    """
    url = url.rstrip("/")
    raw = b"".join(_chunks(f"{url}/{MANIFEST}", MAX_MANIFEST_BYTES))
    files = parse_manifest(raw, f"{url}/{MANIFEST}").files
    if len(files) > MAX_FILES or any(Path(name).name != name or name in ("..", MANIFEST) for name in files):
        raise BundleError(f"{url}/{MANIFEST}: files: expected at most {MAX_FILES} names of files without a folder")
    folder = cache / hashlib.sha256(raw).hexdigest()
    try:
        private_folder(cache)
        if _complete(folder, files):
            return folder
        with tempfile.TemporaryDirectory(prefix=".part-", dir=cache) as name:
            part = Path(name) / "bundle"
            part.mkdir()
            (part / MANIFEST).write_bytes(raw)
            for file, digest in files.items():
                actual = hashlib.sha256()
                with (part / file).open("wb") as out:
                    for chunk in _chunks(f"{url}/{file}", MAX_MODEL_BYTES):
                        actual.update(chunk)
                        out.write(chunk)
                check_digest(f"{url}/{file}", actual.hexdigest(), digest)
            if folder.exists() and not _complete(folder, files):
                shutil.rmtree(folder)
            if not folder.exists():
                part.rename(folder)
    except OSError as error:
        if not _complete(folder, files):  # another process may have finished it first
            raise BundleError(f"{cache}: {error.strerror or error}: set GLIAFLOW_STATE to a writable folder") from None
    return folder


def _complete(folder: Path, files: dict[str, str]) -> bool:
    """Whether each file exists and has its digest."""
    try:
        for name, digest in files.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
    except OSError:
        return False
    return (folder / MANIFEST).is_file()


def _chunks(url: str, limit: int) -> Iterator[bytes]:
    """Read a file in chunks. Its size is checked before and while it is read."""
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
                yield data
    except BundleError:
        raise
    except Exception as error:  # each protocol raises its own types
        hint = ""
        if isinstance(error, FileNotFoundError) and url.endswith(MANIFEST):
            hint = " (a bundle is a folder that `gliaflow train` wrote)"
        raise BundleError(f"{url}: {describe_error(error)}{hint}") from None
