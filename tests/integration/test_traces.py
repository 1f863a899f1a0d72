"""One trace from the submission to the answer, through RabbitMQ and every stage, as an OTLP receiver sees it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from broken import good_scan

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


class Receiver:
    """Takes OTLP over HTTP as a collector does, and keeps the spans with the service that each is of."""

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

    def wait_for(self, seen: Callable[[dict[str, list[Span]]], bool]) -> dict[str, list[Span]]:
        """The spans by name, once ``seen`` says that all are there."""
        deadline = time.monotonic() + 60
        while True:
            found: dict[str, list[Span]] = {}
            for _, span in list(self.spans):
                found.setdefault(span.name, []).append(span)
            if seen(found):
                return found
            assert time.monotonic() < deadline, sorted(found)
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
    wanted = {
        "submit scan",
        "preprocessor scan",
        "extractor slices",
        "classifier features",
        "balancer features",
        "assembler graded",
        "answer prediction",
        "answer failure",
    }
    found = receiver.wait_for(lambda spans: wanted <= spans.keys())
    whole = found["answer prediction"][0].trace_id
    spans = {s.span_id: s for of_name in found.values() for s in of_name if s.trace_id == whole}

    path, span = [], found["answer prediction"][0]
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
    ], "each span's parent is the one whose message it worked on"
    extracted = attributes(found["extractor slices"][0].attributes)
    assert extracted["gliaflow.stage"] == "extractor"
    assert extracted["gliaflow.slices"] > 0
    services = {service for service, _ in receiver.spans}
    assert services == {f"gliaflow-{s}" for s in ("client", "preprocessor", "extractor", "classifier", "generator")}

    (failed,) = [s for s in found["preprocessor scan"] if s.trace_id != whole]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed.attributes)["error.type"] == "InvalidInput"
    for _, span in receiver.spans:
        assert "DOE" not in str(span), "nothing of a patient, and no file's name"
        assert "ROE" not in str(span)


def test_opentelemetry_is_not_even_imported_unless_the_environment_names_a_receiver():
    code = (
        "import sys; from gliaflow_runtime import tracing, stage; from gliaflow_proto import Scan, GenerateMessage\n"
        "tracing.start('extractor')\n"
        "message = GenerateMessage(id='i', scan=Scan(id='s'), trace='00-1', label='HGG', count=1)\n"
        "with tracing.span('extractor', message) as trace: assert trace == '00-1'\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_receiver_that_is_not_there_hurts_nothing(gliaflow, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    good_scan(tmp_path / "scan.nii.gz")
    assert "1 of 1 scans answered" in gliaflow("submit", "scan.nii.gz", "--out", "out").stdout
