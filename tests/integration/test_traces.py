"""One trace leads from the submission to the answer, through RabbitMQ and every stage, as an OTLP receiver sees it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sample_scans import good_scan

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


class Receiver:
    """Receives OTLP over HTTP as a collector does. ``spans`` holds each span with the name of its service."""

    def __init__(self) -> None:
        spans: list[tuple[str, Span]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    service = attributes(resource.resource.attributes)["service.name"]
                    spans.extend((service, span) for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.spans = spans
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_for(self, names: set[str]) -> dict[str, list[Span]]:
        """The spans by name, once there is at least one of each of these names."""
        deadline = time.monotonic() + 60
        while True:
            by_name: dict[str, list[Span]] = {}
            for _, span in list(self.spans):
                by_name.setdefault(span.name, []).append(span)
            if names <= by_name.keys():
                return by_name
            assert time.monotonic() < deadline, sorted(by_name)
            time.sleep(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(pairs: object) -> dict[str, object]:
    return {p.key: p.value.string_value or p.value.int_value for p in pairs}  # type: ignore[attr-defined]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    yield receiver
    receiver.close()


@pytest.mark.rabbitmq
def test_one_trace_from_submit_to_prediction(gliaflow, stages, receiver, tmp_path, rabbitmq_url):
    stages("preprocessor", "extractor", "classifier", "generator")
    good_scan(tmp_path / "DOE_JANE_flair.nii.gz")
    (tmp_path / "ROE_flair.nii.gz").write_bytes(b"no scan")
    gliaflow("submit", ".", "--out", "out", "--grade", "HGG", broker=rabbitmq_url, check=False)
    names = {
        "submit scan",
        "preprocessor scan",
        "extractor slices",
        "classifier features",
        "balancer features",
        "assembler graded",
        "answer prediction",
        "answer failure",
    }
    by_name = receiver.wait_for(names)
    trace = by_name["answer prediction"][0].trace_id
    spans = {span.span_id: span for same_name in by_name.values() for span in same_name if span.trace_id == trace}

    path, span = [], by_name["answer prediction"][0]
    while True:
        path.append(span.name)
        if not span.parent_span_id:
            break
        span = spans[span.parent_span_id]
    assert path[::-1] == [
        "submit scan",
        "preprocessor scan",
        "extractor slices",
        "classifier features",
        "assembler graded",
        "answer prediction",
    ], "a span's parent is the span that sent its message"
    extracted = attributes(by_name["extractor slices"][0].attributes)
    assert extracted["gliaflow.stage"] == "extractor"
    assert extracted["gliaflow.slices"] > 0
    services = {service for service, _ in receiver.spans}
    assert services == {f"gliaflow-{s}" for s in ("client", "preprocessor", "extractor", "classifier", "generator")}

    (failed,) = [span for span in by_name["preprocessor scan"] if span.trace_id != trace]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed.attributes)["error.type"] == "InvalidInput"
    for _, span in receiver.spans:
        assert "DOE" not in str(span), "spans carry no patient's name and no file's name"
        assert "ROE" not in str(span)


def test_opentelemetry_is_imported_only_if_the_environment_names_a_receiver():
    code = (
        "import sys; from gliaflow_runtime import tracing, stage; from gliaflow_proto import Scan, GenerateMessage\n"
        "tracing.start('extractor')\n"
        "message = GenerateMessage(id='i', scan=Scan(id='s'), trace='00-1', label='HGG', count=1)\n"
        "with tracing.span('extractor', message) as trace: assert trace == '00-1'\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unreachable_receiver_does_not_disturb_the_pipeline(gliaflow, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    good_scan(tmp_path / "scan.nii.gz")
    assert "1 of 1 scans answered" in gliaflow("submit", "scan.nii.gz", "--out", "out").stdout
