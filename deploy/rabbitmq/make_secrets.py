"""Write the secrets of a deployment: a password for each of the broker's users, and certificates with --tls.

    FOLDER/<user>/password              the password of one service; with --tls also ca.pem, cert.pem and key.pem
    FOLDER/console/token                the token that opens the console in a browser
    FOLDER/rabbitmq/definitions.json    loaded by RabbitMQ when it starts: policies, permissions, and users with the
                                        hashes of their passwords; with --tls also RabbitMQ's certificate
    FOLDER/rabbitmq/erlang.cookie       the shared secret of the nodes of a cluster
    FOLDER/ca/                          with --tls: a throwaway authority, used by this program only

Existing files are kept, so you can put your own secrets there first. users.json beside this file names the users and
their permissions. Only the owner can enter FOLDER. The files in it are readable to all, like Docker's own secrets,
because each container mounts its user's folder and runs as another user. They belong to the owner of FOLDER. This
program may run as root, so it follows no link below FOLDER. Needs the standard library, and openssl for --tls.
"""

from __future__ import annotations

import argparse
import base64
import errno
import hashlib
import json
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
CLIENT = "gliaflow"  # its first password is its name: its port is published on 127.0.0.1 only
SERVER = "rabbitmq"
CONSOLE = "console"  # it has a token too, for browsers and programs
OPENSSL = """
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {names}
authorityKeyIdentifier = keyid
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
"""


def main() -> int:
    known = [SERVER, *(user["name"] for user in read(HERE / "users.json")["users"])]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--new", nargs="+", default=[], choices=known, metavar="USER", help=f"renew: {known}")
    parser.add_argument("--tls", action="store_true", help="write certificates too")
    parser.add_argument(
        "--host", action="append", default=[], help="another name of the broker in its certificate; repeat"
    )
    options = parser.parse_args()
    try:
        make_secrets(options.folder, options.new, tls=options.tls, hosts=options.host)
    except OSError as error:
        sys.exit(f"{options.folder}: {error.strerror or error}: {error.filename or ''}")
    return 0


def make_secrets(folder: Path, new: list[str], *, tls: bool = False, hosts: list[str] | None = None) -> None:
    """Write the missing secrets, and new ones for the users in ``new``."""
    store = Secrets(folder)
    definitions = read(HERE / "definitions.json") | read(HERE / "users.json")
    for user in definitions["users"]:
        password = store.read(user["name"], "password")
        if password is None or user["name"] in new:
            public = user["name"] == CLIENT and user["name"] not in new
            password = CLIENT if public else secrets.token_urlsafe(24)
            store.write(user["name"], "password", password + "\n")
        check_filled(password, folder / user["name"] / "password")
        user |= {
            "password_hash": password_hash(password.strip()),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
        }
    token = store.read(CONSOLE, "token")
    if token is None or CONSOLE in new:
        token = secrets.token_urlsafe(32)
        store.write(CONSOLE, "token", token + "\n")
    check_filled(token, folder / CONSOLE / "token")
    store.write(SERVER, "definitions.json", json.dumps(definitions, indent=2) + "\n")
    if store.read(SERVER, "erlang.cookie") is None:
        store.write(SERVER, "erlang.cookie", secrets.token_hex(32))
    if tls:
        make_certificates(folder, [user["name"] for user in definitions["users"]], new, hosts or [])


def check_filled(secret: str, file: Path) -> None:
    """Exit if the file holds no secret."""
    if not secret.strip():
        sys.exit(f"{file}: empty: write a {file.name} into it, or delete it")


class Secrets:
    """The files of FOLDER. Each of its folders is opened without following a link, and files are opened from there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._opened(folder, os.O_DIRECTORY) as at:
            os.fchmod(at, 0o700)

    def read(self, user: str, name: str) -> str | None:
        """The text of a file; None if it does not exist. Exits if it is a link, or not a file."""
        with self._user(user) as folder:
            try:
                with self._opened(name, os.O_NOFOLLOW | os.O_NONBLOCK, folder, user) as at:
                    if not stat.S_ISREG(os.fstat(at).st_mode):
                        self._refuse(user, name)
                    with os.fdopen(at, encoding="utf-8", closefd=False) as file:
                        return file.read()
            except FileNotFoundError:
                return None
            except UnicodeDecodeError:
                sys.exit(f"{self._folder / user / name}: not UTF-8 text: write it again, or delete it")

    def write(self, user: str, name: str, text: str, mode: int = 0o444) -> None:
        """Write the file whole: a reader never sees half of it. A link of this name is replaced."""
        part = f".{name}.{secrets.token_hex(4)}"
        with self._user(user) as folder:
            at = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
            try:
                with os.fdopen(at, "w", encoding="utf-8") as file:
                    file.write(text)
                    self._give_to_owner(at)
                    os.fchmod(at, mode)
                os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(part, dir_fd=folder)
                raise

    @contextmanager
    def _user(self, user: str) -> Iterator[int]:
        """A user's folder, made if it is missing and readable to all. The folder above it is closed."""
        with self._opened(self._folder, os.O_DIRECTORY) as top:
            new = False
            with suppress(FileExistsError):
                os.mkdir(user, dir_fd=top)
                new = True
            with self._opened(user, os.O_DIRECTORY | os.O_NOFOLLOW, top) as at:
                os.fchmod(at, 0o755)
                if new:
                    self._give_to_owner(at)
                yield at

    @contextmanager
    def _opened(self, path: Path | str, flags: int, folder: int | None = None, user: str = "") -> Iterator[int]:
        try:
            at = os.open(path, os.O_RDONLY | flags, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            self._refuse(user, str(path))
        try:
            yield at
        finally:
            os.close(at)

    def _give_to_owner(self, at: int) -> None:
        if os.geteuid() == 0:
            owner = self._folder.stat()
            os.fchown(at, owner.st_uid, owner.st_gid)

    def _refuse(self, user: str, name: str) -> NoReturn:
        sys.exit(
            f"{self._folder / user / name}: a link, or not of the expected type: replace it by a copy, or remove it"
        )


def password_hash(password: str) -> str:
    """The hash in RabbitMQ's format: four bytes of salt, then the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def make_certificates(folder: Path, users: list[str], new: list[str], hosts: list[str], days: int = 397) -> None:
    """Write certificates for RabbitMQ and for each user, signed by a throwaway authority in ``folder/ca``."""
    names = ", ".join([f"DNS:{host}" for host in (SERVER, "localhost", *hosts)] + ["IP:127.0.0.1"])
    store = Secrets(folder)
    authority, authority_key = store.read("ca", "ca.pem"), store.read("ca", "ca.key")
    first = authority is None
    with tempfile.TemporaryDirectory() as temporary:  # openssl follows links, so it gets no path below FOLDER
        work = Path(temporary)
        (work / "openssl.cnf").write_text(OPENSSL.format(names=names))
        if authority is None:
            authority, authority_key = certificate(work, "ca", "gliaflow throwaway authority", days)
            store.write("ca", "ca.key", authority_key, 0o400)
            store.write("ca", "ca.pem", authority)
        (work / "ca.pem").write_text(authority)
        (work / "ca.key").write_text(authority_key or "")
        for name in (SERVER, *users):
            if first or store.read(name, "cert.pem") is None or name in new:
                if not authority_key:
                    sys.exit(
                        f"{folder}/ca/ca.key is missing; it signs new certificates: restore it, or remove ca.pem too"
                    )
                signed = ["-CA", str(work / "ca.pem"), "-CAkey", str(work / "ca.key")]
                cert, key = certificate(work, "server" if name == SERVER else "client", name, days, signed)
                for file, text in (("key.pem", key), ("cert.pem", cert), ("ca.pem", authority)):
                    store.write(name, file, text)


def certificate(work: Path, kind: str, name: str, days: int, signed: list[str] | None = None) -> tuple[str, str]:
    """A new certificate and its key. ``work`` is a private folder with the configuration of openssl."""
    command = f"openssl req -x509 -config {work}/openssl.cnf -extensions {kind} -days {days} -noenc".split()
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", f"/CN={name}", *(signed or [])]
    command += ["-keyout", str(work / "key"), "-out", str(work / "cert")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return (work / "cert").read_text(), (work / "key").read_text()


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


if __name__ == "__main__":
    sys.exit(main())
