"""Install the programs that the tests talk to: ``python tests/programs.py``, as root, from Debian.

Without root or without ``apt-get`` the script only names the missing programs: their tests are then skipped. An
installed package starts no service. Needs the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = {  # each with a file that it installs
    "rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "dcmtk": "/usr/bin/storescu",
    "dicom3tools": "/usr/bin/dciodvfy",
    "orthanc": "/usr/sbin/Orthanc",
    "chromium": "/usr/bin/chromium",
    "orthanc-dicomweb": "/usr/share/orthanc/plugins/libOrthancDicomWeb.so",
}
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian's packages ask it before they start a service


def install(packages: list[str]) -> None:
    """Install those of the packages that are missing. A failure prints a message only: the tests say what they lack."""
    missing = [package for package in packages if not Path(PACKAGES[package]).exists()]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        say(f"not installed: {', '.join(missing)}")
        return
    say(f"installing {', '.join(missing)} from Debian")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with no_services():
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *arguments], env=quiet, stdout=subprocess.DEVNULL, check=False)


@contextmanager
def no_services() -> Iterator[None]:
    """Until the end of the block, no package that is installed starts its service."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")  # 101: forbidden
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def say(text: str) -> None:
    print(f"tests/programs.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    install(list(PACKAGES))
