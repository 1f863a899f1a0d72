"""The node's Prometheus metrics (see docs/observability.md). No label belongs to a patient, a study or a peer."""

from prometheus_client import Counter, Gauge

ASSOCIATIONS = Counter(
    "gliaflow_dicom_associations", "Associations by their end: released, aborted or rejected", ["outcome"]
)
REJECTED = Counter(
    "gliaflow_dicom_rejected", "Rejected peers, by reason: calling or called AE title, limit, or not DICOM", ["reason"]
)
IMAGES = Counter("gliaflow_dicom_images", "Images that are on the disk and were answered with 0x0000")
REFUSED_IMAGES = Counter(
    "gliaflow_dicom_images_refused", "Images refused, by reason: full, many, large, mismatch or unreadable", ["reason"]
)
SPOOL_BYTES = Gauge("gliaflow_dicom_spool_bytes", "Bytes in the spool")
SPOOL_LIMIT = Gauge("gliaflow_dicom_spool_limit_bytes", "The most bytes that the spool may hold")
WAITING = Gauge("gliaflow_dicom_studies_waiting", "Studies in the spool that have no answer yet")
SET_ASIDE = Gauge(
    "gliaflow_dicom_set_aside", "Studies that wait for a person, by kind: refused, failed or incomplete", ["kind"]
)
FORGOTTEN = Counter("gliaflow_dicom_forgotten", "Studies deleted since none of their series is FLAIR")
REPEATS_IGNORED = Counter("gliaflow_dicom_repeats_ignored", "Series that came unchanged again too often in an hour")
ANSWERED = Counter("gliaflow_dicom_answered", "Series with an answer")
UNDELIVERED = Gauge("gliaflow_dicom_undelivered", "Answers that a destination has not accepted yet")
UNDELIVERED_AGE = Gauge("gliaflow_dicom_undelivered_seconds", "Age of the oldest undelivered answer, or 0")
STUCK = Gauge("gliaflow_dicom_stuck", "Answers that a destination does not accept")
DELIVERED = Counter("gliaflow_dicom_delivered", "DICOM objects that a destination has accepted")
