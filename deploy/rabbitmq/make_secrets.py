"""Write the secrets of a deployment: a password for each of the broker's users, and certificates with --tls.

    FOLDER/<user>/password              the password of one service; with --tls also ca.pem, cert.pem and key.pem
    FOLDER/rabbitmq/definitions.json    loaded by RabbitMQ when it starts: policies, permissions, and users with the
                                        hashes of their passwords; with --tls also RabbitMQ's certificate
    FOLDER/rabbitmq/erlang.cookie       the shared secret of the nodes of a cluster
    FOLDER/ca/                          with --tls: a throwaway authority, used by this program only

Existing files are kept, so you can put your own secrets there first. users.json beside this file names the users and
their permissions. Only the owner can enter FOLDER. The files in it are readable to all, like Docker's own secrets,
because each container mounts its user's folder and runs as another user. Needs the standard library, and openssl for
--tls.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLIENT = "gliaflow"  # its first password is its name: its port is published on 127.0.0.1 only
SERVER = "rabbitmq"
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
    make_secrets(options.folder, options.new, tls=options.tls, hosts=options.host)
    return 0


def make_secrets(folder: Path, new: list[str], *, tls: bool = False, hosts: list[str] | None = None) -> None:
    """Write the missing secrets, and new ones for the users in ``new``."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    definitions = read(HERE / "definitions.json") | read(HERE / "users.json")
    for user in definitions["users"]:
        file = folder / user["name"] / "password"
        if user["name"] in new:
            write(file, secrets.token_urlsafe(24))
        elif not file.exists():
            write(file, CLIENT if user["name"] == CLIENT else secrets.token_urlsafe(24))
        user |= {
            "password_hash": password_hash(file.read_text().strip()),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
        }
    write(folder / SERVER / "definitions.json", json.dumps(definitions, indent=2))
    if not (folder / SERVER / "erlang.cookie").exists():
        write(folder / SERVER / "erlang.cookie", secrets.token_hex(32), end="")
    if tls:
        make_certificates(folder, [user["name"] for user in definitions["users"]], new, hosts or [])
    if os.geteuid() == 0:  # in a container
        for path in folder.rglob("*"):
            os.chown(path, folder.stat().st_uid, folder.stat().st_gid)


def password_hash(password: str) -> str:
    """The hash in RabbitMQ's format: four bytes of salt, then the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def make_certificates(folder: Path, users: list[str], new: list[str], hosts: list[str], days: int = 397) -> None:
    """Write certificates for RabbitMQ and for each user, signed by a throwaway authority in ``folder/ca``."""
    names = ", ".join([f"DNS:{host}" for host in (SERVER, "localhost", *hosts)] + ["IP:127.0.0.1"])
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as config:
        config.write(OPENSSL.format(names=names))
        config.flush()
        authority, authority_key = folder / "ca" / "ca.pem", folder / "ca" / "ca.key"
        first = not authority.exists()
        if first:
            certificate(config.name, "ca", "gliaflow throwaway authority", authority, authority_key, days)
            authority_key.chmod(0o400)
        for name in (SERVER, *users):
            own = folder / name
            if first or not (own / "cert.pem").exists() or name in new:
                kind = "server" if name == SERVER else "client"
                signed = ["-CA", str(authority), "-CAkey", str(authority_key)]
                certificate(config.name, kind, name, own / "cert.pem", own / "key.pem", days, signed)
                write(own / "ca.pem", authority.read_text())


def certificate(
    config: str, kind: str, name: str, cert: Path, key: Path, days: int, signed: list[str] | None = None
) -> None:
    """Write a key and its certificate. The old ones are replaced when both new ones are complete."""
    open_folder(cert)
    parts = [path.with_name(f"{path.name}.part") for path in (key, cert)]
    command = f"openssl req -x509 -config {config} -extensions {kind} -days {days} -noenc".split()
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", f"/CN={name}", *(signed or [])]
    command += ["-keyout", str(parts[0]), "-out", str(parts[1])]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for part, path in zip(parts, (key, cert), strict=True):
        part.chmod(0o444)
        part.replace(path)


def open_folder(file: Path) -> None:
    """Create the file's folder, readable to all whatever the umask. The folder above it is closed."""
    file.parent.mkdir(exist_ok=True)
    file.parent.chmod(0o755)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def write(file: Path, text: str, end: str = "\n") -> None:
    """Write the file whole: a reader never sees half of it."""
    open_folder(file)
    part = file.with_name(f"{file.name}.part")
    part.write_text(text + end)
    part.chmod(0o444)
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main())
