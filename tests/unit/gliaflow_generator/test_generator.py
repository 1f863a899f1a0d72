"""The balancer counts labelled features of its own bundle only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gliaflow_generator.generator import Balancer
from gliaflow_generator.synthesis import Synthesizer
from gliaflow_proto import FeaturesMessage, ProtocolError, Scan
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.bundle.load import load_bundle
from gliaflow_runtime.stage import OtherBundle
from sample_messages import ONE_OF_EACH

DELIVERY = Delivery("", "", b"")


@pytest.fixture
def balancer() -> Balancer:
    bundle = load_bundle(None)
    return Balancer(bundle, Synthesizer(bundle, threads=1), share=0.5, seed=0)


@pytest.fixture
def part() -> FeaturesMessage:
    """64 slices of the smaller class's rival, so that it is counted; more slices than a real part has."""
    bundle = load_bundle(None)
    (sample,) = (message for message in ONE_OF_EACH if isinstance(message, FeaturesMessage))
    return replace(
        sample,
        scan=Scan(id="s", label="HGG"),
        bundle=bundle.id,
        geometry=replace(sample.geometry, slices=list(range(64))),
        features=np.zeros((64, *bundle.tap_shape), np.float16),
    )


def test_features_of_another_bundle_do_not_count(balancer: Balancer, part: FeaturesMessage) -> None:
    """Its ``Worker`` passes them over: a bundle that is replaced stage by stage leaves no dead letter."""
    with pytest.raises(OtherBundle, match="the features are of other@1, but this balancer serves"):
        balancer.handle(replace(part, bundle="other@1", features=np.zeros((64, 1, 2, 3), np.float16)), DELIVERY)
    assert balancer._real == {"HGG": 0, "LGG": 0}


def test_features_of_its_bundle_are_counted_and_of_another_shape_refused(
    balancer: Balancer, part: FeaturesMessage
) -> None:
    balancer.handle(part, DELIVERY)
    assert balancer._real == {"HGG": 64, "LGG": 0}
    with pytest.raises(ProtocolError, match=r"tensors.features: shape \(64, 1, 2, 3\), expected"):
        balancer.handle(replace(part, features=np.zeros((64, 1, 2, 3), np.float16)), DELIVERY)
