"""The grades that gliaflow distinguishes."""

from __future__ import annotations

CLASSES = ("HGG", "LGG")
"""High-grade and low-grade glioma, in the order of a critic's logits. A classifier's logit is for the first."""
