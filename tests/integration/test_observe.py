"""Dashboard and alerts: their metrics exist, and on a running pipeline each panel has data and the alerts fire.

Tests that need Prometheus skip where it is not installed (Debian: ``apt-get install prometheus``), in CI too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gliaflow_cli.checks.broker import LIMITS
from gliaflow_dicom.node import metrics as dicom_metrics
from gliaflow_proto.routing import ALL_QUEUES, STAGE_QUEUES
from gliaflow_runtime import metrics
from processes import free_port
from prometheus_client import generate_latest
from sample_scans import good_scan

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "gliaflow.json").read_text(encoding="utf-8"))
DOCS = (DEPLOY.parent / "docs" / "observability.md").read_text(encoding="utf-8")
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
OF_STAGES = [expression for expression in EXPRESSIONS if "gliaflow_dicom_" not in expression]  # the others: DICOM node
DETAILED = "/metrics/detailed?family=queue_coarse_metrics&family=queue_consumer_count"
SUFFIXES = r"_(bucket|count|sum)$"


def exposed_by_gliaflow() -> dict[str, str]:
    """Every metric that gliaflow exposes, with its kind."""
    return dict(re.findall(r"^# TYPE (gliaflow_\w+) (\w+)$", generate_latest().decode(), re.MULTILINE))


def metrics_in(text: str) -> set[str]:
    """The names of the metrics in PromQL expressions."""
    return {re.sub(SUFFIXES, "", name) for name in re.findall(r"\b(?:gliaflow|rabbitmq|process)_[a-z_]+\b", text)}


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES)


@pytest.fixture
def rabbitmq_metrics() -> Callable[[str], str]:
    address = os.environ.get("GLIAFLOW_TEST_PROMETHEUS")
    if not address:
        pytest.skip("GLIAFLOW_TEST_PROMETHEUS names no RabbitMQ with rabbitmq_prometheus (tests/rabbitmq.py does)")

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    return get


def test_every_metric_is_documented_and_every_documented_metric_exists():
    exposed = {name for name in exposed_by_gliaflow() if not name.endswith("_created")}
    assert set(re.findall(r"^\| `(gliaflow_\w+)", DOCS, re.MULTILINE)) == exposed


def test_metric_names_follow_the_conventions_of_prometheus():
    for name, kind in exposed_by_gliaflow().items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert "milli" not in name
    labels = {"stage", "doing", "outcome", "kind", "label", "verdict", "version", "bundle", "answer", "reason"}
    for metric in (*vars(metrics).values(), *vars(dicom_metrics).values()):
        assert set(getattr(metric, "_labelnames", ())) <= labels, metric


def test_dashboard_and_alerts_use_only_metrics_that_the_stages_expose():
    used = {name for name in metrics_in(" ".join(EXPRESSIONS) + RULES) if name.startswith("gliaflow_")}
    assert used <= exposed_by_gliaflow().keys()
    assert len(used) > 10


@pytest.mark.rabbitmq
def test_dashboard_and_alerts_use_only_metrics_that_rabbitmq_exposes(stages, rabbitmq_metrics):
    stages("generator")
    used = {name for name in metrics_in(" ".join(EXPRESSIONS) + RULES) if name.startswith("rabbitmq_")}
    exposed = rabbitmq_metrics("/metrics") + rabbitmq_metrics(DETAILED)
    assert used <= set(re.findall(r"^# TYPE (rabbitmq_\w+)", exposed, re.MULTILINE))
    assert "rabbitmq_detailed_queue_consumers" in used


def test_dashboard_fits_the_provisioning_of_grafana():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    source = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8")
    provider = (DEPLOY / "grafana" / "provisioning" / "dashboards" / "gliaflow.yml").read_text(encoding="utf-8")
    compose = (DEPLOY.parent / "docker-compose.yml").read_text(encoding="utf-8")
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for target in panel.get("targets", ()):
            assert f"uid: {target['datasource']['uid']}" in source
    folder = re.search(r"path: (\S+?) }", provider)
    assert folder
    assert f"./deploy/grafana/dashboards:{folder.group(1)}:ro" in compose


def test_alerts_use_the_length_limits_of_the_queues():
    for name, length in ((name, count) for name, (count, _) in LIMITS.items() if count):
        if name != "balancer":  # a full balancer drops its oldest messages, which needs no alert
            assert re.search(rf"ready{{queue=~?\S*\b{name}\b\S*}} > 0\.9 \* {length}\n", RULES), name
    watched = re.search(r"consumers{queue=~\"(\S+)\"} == 0", RULES)
    assert watched
    pattern = re.compile(watched.group(1).replace("\\\\", "\\"))
    assert [queue for queue in ALL_QUEUES if pattern.fullmatch(queue.name)] == list(STAGE_QUEUES)


def test_alerts_are_documented_and_a_rule_test_fires_each():
    cases = (DEPLOY / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
    for name in alert_names():
        assert f'alertname="{name}"' in cases
        assert f"`{name.removeprefix('Gliaflow')}`" in DOCS


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts_the_configuration_and_the_rule_tests(arguments):
    done = promtool(*arguments[:2], DEPLOY / "prometheus" / arguments[2])
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A Prometheus with the shipped configuration. Only the hosts and the waiting times differ."""

    def __init__(self, folder: Path, rabbitmq: str, stages: dict[str, int]) -> None:
        config = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
        targets = "\n".join(
            f"      - {{ targets: ['127.0.0.1:{port}'], labels: {{ service: {name} }} }}"
            for name, port in stages.items()
        )
        config = re.sub(
            r"    dns_sd_configs: #.*?relabel_configs:.*?\n\n",
            f"    static_configs:\n{targets}\n\n",
            config,
            flags=re.S,
        )
        node = f"    static_configs: [{{ targets: ['{rabbitmq}'] }}]\n"
        config, nodes = re.subn(r"    dns_sd_configs: (&nodes\n(      .*\n)+|\*nodes\n)", node, config)
        assert nodes == 2
        config = config.replace("_interval: 10s", "_interval: 1s")
        (folder / "prometheus.yml").write_text(config)
        (folder / "alerts.yml").write_text(re.sub(r"for: \d+m", "for: 1s", RULES))
        self.port = free_port()
        self.log = folder / "prometheus.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])

    def firing(self) -> set[str]:
        return {a["labels"]["alertname"] for a in self.get("alerts")["alerts"] if a["state"] == "firing"}

    def wait(self, condition: Callable[[], object], message: str) -> None:
        """Return once the condition holds. After a minute the test fails with the message."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if condition():
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{message}\n{self.log.read_text()[-2000:]}"
            time.sleep(0.3)


@pytest.fixture
def watched(stages, tmp_path, rabbitmq_metrics) -> Iterator[tuple[Prometheus, dict[str, Any]]]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    names = ("preprocessor", "extractor", "classifier", "generator")
    running = dict(zip(names, stages(*names), strict=True))
    folder = tmp_path / "prometheus"
    folder.mkdir()
    address = os.environ["GLIAFLOW_TEST_PROMETHEUS"]
    prometheus = Prometheus(folder, address, {name: stage.port for name, stage in running.items()})
    yield prometheus, running
    prometheus.process.terminate()
    prometheus.process.wait(20)


@pytest.mark.rabbitmq
def test_panels_have_data_and_alerts_fire_on_a_real_pipeline(watched, gliaflow, tmp_path, rabbitmq_url):
    prometheus, running = watched
    good_scan(tmp_path / "good.nii.gz")
    (tmp_path / "poison.nii.gz").write_bytes(b"no scan")
    prometheus.wait(lambda: len(prometheus.query("up == 1")) == 6, "not every target is scraped")
    prometheus.wait(lambda: len(prometheus.query("count_over_time(up[1m]) > 2")) == 6, "a rate needs two values")
    assert prometheus.firing() == set()
    gliaflow("submit", ".", "--out", "out", "--grade", "LGG", broker=rabbitmq_url, check=False)
    for expression in OF_STAGES:
        query = expression.replace("$__rate_interval", "1m").replace("$__range", "5m")
        prometheus.wait(lambda query=query: prometheus.query(query), f"no data: {expression}")
    assert float(prometheus.query("sum(gliaflow_scan_seconds_count)")[0]["value"][1]) == 1
    prometheus.wait(lambda: "GliaflowDeadLetters" in prometheus.firing(), "no alert for the dead letter")
    running["extractor"].stop(signal.SIGKILL)
    prometheus.wait(
        lambda: {"GliaflowNoConsumer", "GliaflowDown"} <= prometheus.firing(),
        "no alert for the queue without a consumer",
    )
