"""Copy a bundle from a store into the folder of bundles, so that stages need neither a key nor a way to the store.

python3 -m gliaflow_runner.fetch s3://bucket/bundles/mine /bundles      writes /bundles/mine
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from gliaflow_runtime.bundle.download import fetch_bundle
from gliaflow_runtime.bundle.manifest import MANIFEST, BundleError
from gliaflow_runtime.folders import become_owner


def fetch(url: str, bundles: Path) -> Path:
    """The bundle's folder in ``bundles``, complete, and named after the last part of its URL.

    Raises BundleError: as ``fetch_bundle`` does, or another bundle has that name already, which stages may be using.
    """
    name = PurePosixPath(urlsplit(url).path).name
    if "://" not in url or name in ("", ".."):
        raise BundleError(f"{url!r} is not the URL of a bundle; expected for example s3://bucket/bundles/mine")
    become_owner(bundles)
    folder = bundles / name
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=bundles) as cache:
        fetched = fetch_bundle(url, Path(cache))
        if not folder.exists():
            fetched.rename(folder)
        elif (folder / MANIFEST).read_bytes() != (fetched / MANIFEST).read_bytes():
            raise BundleError(f"{folder} is another bundle than {url}: give the new bundle a name of its own")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python3 -m gliaflow_runner.fetch URL FOLDER")
    try:
        fetch(sys.argv[1], Path(sys.argv[2]))
    except (BundleError, OSError) as error:
        raise SystemExit(f"gliaflow: {error}") from None
