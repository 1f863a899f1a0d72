"""Prometheus metrics of all stages. ``gliaflow_seconds_total`` tells waiting from computing from publishing."""

from prometheus_client import Counter, Gauge

SECONDS = Counter(
    "gliaflow_seconds", "Seconds a stage spent, by what it did: wait, compute or publish", ["stage", "doing"]
)
MESSAGES = Counter(
    "gliaflow_messages",
    "Messages settled, by outcome: done, dead or requeued",
    ["stage", "outcome"],
)
SLICES = Counter("gliaflow_slices", "Slices worked on", ["stage"])
PUBLISHED = Counter("gliaflow_published", "Messages published, by kind", ["stage", "kind"])
BYTES = Counter("gliaflow_published_bytes", "Bytes published", ["stage"])
FULL = Counter("gliaflow_full_queue", "Publishes that had to wait because a queue was full", ["stage"])
READY = Gauge("gliaflow_ready", "1 while the stage can work: bundle warm, broker connected, consuming", ["stage"])
SYNTHETIC = Counter(
    "gliaflow_synthetic",
    "Synthetic features by class and verdict of the critic: accepted or refused",
    ["label", "verdict"],
)
