"""Run a command with a RabbitMQ to test against: ``python tests/rabbitmq.py [--brokers 3] pytest``.

The script uses the first of these brokers that is available, and stops only a broker that it started:

1. the broker that ``GLIAFLOW_TEST_BROKER`` names (an AMQP URL), if it answers;
2. a container of ``rabbitmq:4-management``, if a Docker engine answers and has or can get the image;
3. a private ``rabbitmq-server`` in a temporary folder, on free ports. If it is not installed, root installs it from
   Debian.

The command's environment has ``GLIAFLOW_TEST_BROKER``, the URL of a user with all permissions, and, except in case 1:
``GLIAFLOW_TEST_RABBITMQCTL``, how to run ``rabbitmqctl``; ``GLIAFLOW_TEST_SECRETS``, a folder that
``deploy/rabbitmq/make_secrets.py`` filled; ``GLIAFLOW_TEST_TLS_PORT``; ``GLIAFLOW_TEST_MANAGEMENT``, the management
API; and ``GLIAFLOW_TEST_PROMETHEUS``, the address of the broker's metrics. ``--brokers 3`` starts three, one for each
worker of pytest-xdist. ``GLIAFLOW_TEST_BROKERS`` then has the variables of each, as JSON. The files in
``deploy/rabbitmq`` configure the broker as they configure a deployed one. Needs the standard library, and openssl.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEPLOY = Path(__file__).resolve().parent.parent / "deploy" / "rabbitmq"
sys.path.append(str(DEPLOY))
from make_secrets import make_secrets, password_hash  # noqa: E402
from programs import install  # noqa: E402

IMAGE = "rabbitmq:4-management"
ADMIN = "tests"
PORTS = ("5672", "5671", "15672", "15692")
WITHIN_S = 90


def main() -> int:
    command, brokers = sys.argv[1:], 1
    if command[:1] == ["--brokers"]:
        command, brokers = command[2:], max(1, int(command[1]))
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    with ExitStack() as stack:
        environment = os.environ | start(stack, brokers)
        child = subprocess.Popen(command, env=environment)
        stack.callback(stop, child)
        return child.wait()


@dataclass(frozen=True)
class Broker:
    """A broker that starts. ``variables`` are for the environment."""

    variables: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    out: Path | None = None

    def wait(self) -> None:
        """Return once RabbitMQ accepts AMQP and has the policies."""
        port, until = urlsplit(self.variables["GLIAFLOW_TEST_BROKER"]).port or 0, time.monotonic() + WITHIN_S
        while not answers("127.0.0.1", port):
            if time.monotonic() > until or (self.process and self.process.poll() is not None):
                text = self.out.read_text()[-2000:] if self.out else ""
                sys.exit(f"tests/rabbitmq.py: RabbitMQ did not come up.\n{text}")
            time.sleep(0.25)
        rabbitmqctl = shlex.split(self.variables["GLIAFLOW_TEST_RABBITMQCTL"])
        while "gliaflow.dead-letters" not in output([*rabbitmqctl, "list_policies"]):  # imported after the port listens
            if time.monotonic() > until:
                sys.exit("tests/rabbitmq.py: the policies did not arrive")
            time.sleep(0.2)


def start(stack: ExitStack, count: int) -> dict[str, str]:
    """Find or start brokers. ``stack`` gets the callbacks that stop them. Returns variables for the environment."""
    url = os.environ.get("GLIAFLOW_TEST_BROKER")
    if url and answers(urlsplit(url).hostname or "localhost", urlsplit(url).port or 5672):
        say(f"using the RabbitMQ of GLIAFLOW_TEST_BROKER at {urlsplit(url).hostname}")
        return {}
    brokers, ports = [], free_ports(6 * count)
    for number in range(count):
        folder = tempfile.TemporaryDirectory(prefix="gliaflow-rabbitmq-", ignore_cleanup_errors=True)
        home = Path(stack.enter_context(folder))
        prepare_secrets(home / "secrets")
        broker = in_docker(stack, home) or private(stack, home, ports[6 * number : 6 * number + 6])
        broker.variables["GLIAFLOW_TEST_SECRETS"] = str(home / "secrets")
        brokers.append(broker)
    for broker in brokers:
        broker.wait()
    return brokers[0].variables | {"GLIAFLOW_TEST_BROKERS": json.dumps([broker.variables for broker in brokers])}


def prepare_secrets(folder: Path) -> None:
    """Run ``make_secrets``, and add a user with all permissions."""
    make_secrets(folder, [], tls=True)
    file = folder / "rabbitmq" / "definitions.json"
    definitions = json.loads(file.read_text())
    definitions["users"].append({"name": ADMIN, "tags": ["administrator"], "password_hash": password_hash(ADMIN)})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    definitions["permissions"].append({"user": ADMIN, "vhost": "/", **everything})
    file.chmod(0o644)
    file.write_text(json.dumps(definitions))


def configuration(secrets: str, tls_port: int) -> str:
    """The configuration in ``deploy/rabbitmq``, for a broker that also listens without TLS."""
    text = (DEPLOY / "rabbitmq.conf").read_text() + (DEPLOY / "tls.conf").read_text()
    text = text.replace("listeners.tcp = none\n", "").replace("/run/secrets/", f"{secrets}/")
    return text.replace("listeners.ssl.default = 5671", f"listeners.ssl.default = {tls_port}")


def in_docker(stack: ExitStack, home: Path) -> Broker | None:
    """Start a container. Returns None if there is no engine or no image."""
    if not shutil.which("docker") or not succeeds(["docker", "version"], 10):
        return None
    if not succeeds(["docker", "image", "inspect", IMAGE], 10) and not succeeds(["docker", "pull", "-q", IMAGE], 300):
        say(f"Docker answers, but cannot get {IMAGE}")
        return None
    ports = [option for port in PORTS for option in ("-p", f"127.0.0.1::{port}")]
    container = output(["docker", "create", "--rm", *ports, IMAGE]).strip()
    stack.callback(succeeds, ["docker", "rm", "--force", "--volumes", container], 60)
    (home / "gliaflow.conf").write_text(configuration("/gliaflow-secrets", 5671))
    output(["docker", "cp", str(home / "secrets" / "rabbitmq"), f"{container}:/gliaflow-secrets"])
    output(["docker", "cp", str(home / "gliaflow.conf"), f"{container}:/etc/rabbitmq/conf.d/30-gliaflow.conf"])
    output(["docker", "start", container])
    port, tls, management, prometheus = (
        int(output(["docker", "port", container, p]).splitlines()[0].rpartition(":")[2]) for p in PORTS
    )
    say(f"started {IMAGE} on port {port}")
    variables = {
        "GLIAFLOW_TEST_BROKER": f"amqp://{ADMIN}:{ADMIN}@127.0.0.1:{port}/",
        "GLIAFLOW_TEST_TLS_PORT": str(tls),
        "GLIAFLOW_TEST_RABBITMQCTL": shlex.join(["docker", "exec", container, "rabbitmqctl"]),
        "GLIAFLOW_TEST_MANAGEMENT": f"http://{ADMIN}:{ADMIN}@127.0.0.1:{management}",
        "GLIAFLOW_TEST_PROMETHEUS": f"127.0.0.1:{prometheus}",
    }
    return Broker(variables)


def private(stack: ExitStack, home: Path, ports: list[int]) -> Broker:
    """Start a private ``rabbitmq-server``. All that it writes, its cookie included, is in a temporary folder."""
    scripts = installed()
    amqp, tls, distribution, epmd, management, prometheus = ports
    (home / "plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n")
    listen = f"management.tcp.port = {management}\nprometheus.tcp.port = {prometheus}\n"
    statistics = "collect_statistics_interval = 1000\n"  # ms; the default of five seconds would slow the tests
    (home / "rabbitmq.conf").write_text(configuration(str(home / "secrets" / "rabbitmq"), tls) + listen + statistics)
    settings = {
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"gliaflow-{amqp}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(amqp),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,  # ignore the machine's own settings
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",  # no dump in the command's working folder
        "RABBITMQ_CTL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",  # rabbitmqctl waits without computing
    }
    environment = os.environ | settings
    # Otherwise Erlang would start its port mapper as a daemon, which would outlive this script
    run_until_end(stack, [str(shutil.which("epmd", path=path())), "-port", str(epmd)], environment, home)
    server = run_until_end(stack, [scripts["rabbitmq-server"]], environment, home)
    say(f"started a private rabbitmq-server on port {amqp}")
    assignments = [f"{name}={value}" for name, value in settings.items()]
    variables = {
        "GLIAFLOW_TEST_BROKER": f"amqp://{ADMIN}:{ADMIN}@127.0.0.1:{amqp}/",
        "GLIAFLOW_TEST_TLS_PORT": str(tls),
        "GLIAFLOW_TEST_RABBITMQCTL": shlex.join(["env", *assignments, scripts["rabbitmqctl"]]),
        "GLIAFLOW_TEST_MANAGEMENT": f"http://{ADMIN}:{ADMIN}@127.0.0.1:{management}",
        "GLIAFLOW_TEST_PROMETHEUS": f"127.0.0.1:{prometheus}",
    }
    return Broker(variables, server, home / "out.txt")


def installed() -> dict[str, str]:
    """The paths of RabbitMQ's scripts. Debian's come before those in the path, because they run as the current user."""
    for attempt in (1, 2):
        scripts = {
            name: next(
                filter(None, (shutil.which(name, path="/usr/lib/rabbitmq/bin"), shutil.which(name, path=path()))), ""
            )
            for name in ("rabbitmq-server", "rabbitmqctl")
        }
        if all(scripts.values()):
            return scripts
        if attempt == 1:
            install(["rabbitmq-server"])
    sys.exit(
        "tests/rabbitmq.py: no RabbitMQ for the tests. Set GLIAFLOW_TEST_BROKER=amqp://… to a running one, "
        f"or start a Docker engine that can get {IMAGE}, or install rabbitmq-server."
    )


def run_until_end(
    stack: ExitStack, command: list[str], environment: dict[str, str], home: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own. When ``stack`` closes, the whole session is killed."""
    with (home / "out.txt").open("ab") as out:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )

    def end() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # it holds nothing worth keeping
        process.wait()

    stack.callback(end)
    return process


def answers(host: str, port: int) -> bool:
    """Whether an AMQP server answers. An open port proves nothing, because Docker's proxy accepts connections too."""
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame: connection.start
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def path() -> str:
    """The search path with the folders that Debian omits for ordinary users."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def succeeds(command: list[str], within_s: float) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=within_s, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=WITHIN_S).stdout


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the command if it still runs. It gets ten seconds to end by itself."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def say(text: str) -> None:
    print(f"tests/rabbitmq.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
