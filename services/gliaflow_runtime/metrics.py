"""Prometheus metrics of all stages; docs/observability.md says what each is for.

No label holds anything of a scan or a patient, and each has few values: stages, outcomes, kinds and classes.
"""

from prometheus_client import Counter, Gauge, Histogram

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

BUILD = Gauge("gliaflow_build_info", "Always 1: which version of gliaflow serves which bundle", ["version", "bundle"])
READY = Gauge("gliaflow_ready", "1 while the stage can work: bundle warm, broker connected, consuming", ["stage"])
SECONDS = Counter(
    "gliaflow_seconds", "Seconds a stage spent, by what it did: wait, compute or publish", ["stage", "doing"]
)
MESSAGES = Counter(
    "gliaflow_messages",
    "Messages settled, by outcome: done, dead or requeued",
    ["stage", "outcome"],
)
REDELIVERED = Counter("gliaflow_redelivered", "Deliveries of messages that had been delivered before", ["stage"])
MESSAGE_SECONDS = Histogram(
    "gliaflow_message_seconds", "Seconds of computing for one message", ["stage"], buckets=BUCKETS_S
)
WORKING = Gauge("gliaflow_working_seconds", "Seconds since the message in work was taken; 0 without one", ["stage"])
LAST_SUCCESS = Gauge(
    "gliaflow_last_success_timestamp_seconds", "When the stage was last done with a message, Unix time", ["stage"]
)
SLICES = Counter("gliaflow_slices", "Slices worked on", ["stage"])
PUBLISHED = Counter("gliaflow_published", "Messages published, by kind", ["stage", "kind"])
BYTES = Counter("gliaflow_published_bytes", "Bytes published", ["stage"])
FULL = Counter("gliaflow_full_queue", "Publishes that had to wait because a queue was full", ["stage"])
SCAN_SECONDS = Histogram(
    "gliaflow_scan_seconds",
    "Seconds from when a scan was sent to its prediction, where its sender said when that was",
    buckets=(*BUCKETS_S[5:], 1800, 3600),
)
OPEN_SCANS = Gauge("gliaflow_open_scans", "Scans of which the assembler has some parts and waits for others")
OPEN_SCAN_WAIT = Gauge(
    "gliaflow_open_scan_wait_seconds", "Of those, how long the one that has waited longest got no part, in seconds"
)
SYNTHETIC = Counter(
    "gliaflow_synthetic",
    "Synthetic features by class and verdict of the critic: accepted or refused",
    ["label", "verdict"],
)
