"""Prometheus metrics of all stages (see docs/observability.md).

Labels have few values (stages, outcomes, kinds, classes), and none that belongs to a scan or a patient.
"""

from prometheus_client import Counter, Gauge, Histogram

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

BUILD = Gauge("gliaflow_build_info", "Always 1; the labels name gliaflow's version and bundle", ["version", "bundle"])
READY = Gauge("gliaflow_ready", "1 while the stage can work: bundle loaded, broker connected, consuming", ["stage"])
SECONDS = Counter("gliaflow_seconds", "Time of a stage, by activity: wait, compute or publish", ["stage", "doing"])
MESSAGES = Counter("gliaflow_messages", "Settled messages, by outcome: done, dead or requeued", ["stage", "outcome"])
REDELIVERED = Counter("gliaflow_redelivered", "Deliveries of messages that were delivered before", ["stage"])
MESSAGE_SECONDS = Histogram("gliaflow_message_seconds", "Computing time of one message", ["stage"], buckets=BUCKETS_S)
WORKING = Gauge("gliaflow_working_seconds", "Seconds since the message in work was received, or 0", ["stage"])
LAST_SUCCESS = Gauge(
    "gliaflow_last_success_timestamp_seconds", "Unix time when the stage last finished a message", ["stage"]
)
SLICES = Counter("gliaflow_slices", "Slices processed", ["stage"])
PUBLISHED = Counter("gliaflow_published", "Messages published, by kind", ["stage", "kind"])
BYTES = Counter("gliaflow_published_bytes", "Bytes published", ["stage"])
FULL = Counter("gliaflow_full_queue", "Publishes that had to wait because a queue was full", ["stage"])
SCAN_SECONDS = Histogram(
    "gliaflow_scan_seconds",
    "Seconds from sending a scan to its prediction, for messages that have the time of sending",
    buckets=(*BUCKETS_S[5:], 1800, 3600),
)
ANSWERS = Counter("gliaflow_answers", "Scans answered, by answer: a class, or no tumour", ["answer"])
OPEN_SCANS = Gauge(
    "gliaflow_open_scans", "Scans of which the assembler has some parts and waits for the others", ["stage"]
)
OPEN_SCAN_WAIT = Gauge(
    "gliaflow_open_scan_wait_seconds", "Longest wait of an open scan for its next part, in seconds", ["stage"]
)
OTHER_BUNDLE = Counter("gliaflow_other_bundle", "Messages of another bundle than the stage's", ["stage"])
SYNTHETIC = Counter("gliaflow_synthetic", "Synthetic features: accepted or refused by the critic", ["label", "verdict"])
