"""The grades that gliaflow tells apart."""

from __future__ import annotations

CLASSES = ("HGG", "LGG")
"""High-grade and low-grade glioma, in the order of a critic's logits; a classifier's logit is of the first."""
