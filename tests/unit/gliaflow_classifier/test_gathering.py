"""Which graded parts are refused, and how many are kept in memory."""

import numpy as np
import pytest
from assembler_by_hand import FakeBundle, assembler, changed, deliver, part, predictions, run
from gliaflow_classifier.assembler import Assembler
from gliaflow_proto import ProtocolError, encode
from gliaflow_runtime.broker.interface import Delivery


@pytest.mark.parametrize(
    "other",
    [
        part(1, count=4),
        changed(part(1), geometry=changed(part(1).geometry, shape=[9, 8, 6])),
        changed(part(1), geometry=part(0).geometry),
    ],
    ids=["count", "shape", "the same slices"],
)
def test_a_part_that_does_not_fit_the_others_is_refused(other):
    stage = assembler()
    deliver(stage, part(0))
    with pytest.raises(ProtocolError, match=r"other parts? of this scan"):
        deliver(stage, other)


def test_a_logit_that_is_not_finite_is_refused():
    with pytest.raises(ProtocolError, match="finite"):
        deliver(assembler(), changed(part(0), logit=np.array([np.nan, 0])))


def test_logits_that_do_not_match_the_slices_are_refused():
    with pytest.raises(ProtocolError, match="logits"):
        deliver(assembler(), changed(part(0), logit=np.zeros(3)))


class TestMemory:
    """Parts wait in the assembler's memory, so their size, their number and their sum are limited."""

    def test_the_bytes_of_open_parts_are_limited_and_the_oldest_scan_fails_first(self, monkeypatch):
        class Large(FakeBundle):
            class manifest(FakeBundle.manifest):
                class input:
                    size = (1024, 1024)

            @staticmethod
            def slices_per_part(max_bytes):
                return 12

        monkeypatch.setattr("gliaflow_classifier.assembler.OPEN_BYTES", 100 * 2**20)
        stage, masks = Assembler(Large, timeout_s=60), np.ones((12, 1024, 1024), np.uint8)
        geometry = changed(part(0).geometry, size=[1024, 1024], shape=[8, 8, 12], slices=list(range(12)))
        held, failed = 0, []
        for number in range(25):
            large = changed(part(0, scan=f"s{number}"), geometry=geometry, mask=masks, logit=np.zeros(12))
            delivery, outcome = deliver(stage, large)
            held += len(delivery.body) - sum(len(letter.body) for letter, _ in outcome.dead)
            failed += [message.scan.id for message in outcome.publish]
            assert held <= 100 * 2**20
        assert failed == [f"s{number}" for number in range(17)]

    def test_a_part_larger_than_those_of_the_bundle_is_refused(self):
        more = changed(part(0).geometry, slices=[0, 1, 2])
        with pytest.raises(ProtocolError, match=r"3 of \[8, 8\], but a part of this bundle has at most 2 of \[8, 8\]"):
            deliver(assembler(), changed(part(0), geometry=more))
        larger = changed(part(0).geometry, size=[9, 8])
        with pytest.raises(ProtocolError, match=r"2 of \[9, 8\]"):
            deliver(assembler(), changed(part(0), geometry=larger))

    def test_a_part_with_more_bytes_than_its_fields_need_is_refused(self):
        """A reader ignores unknown fields, but the assembler would keep them."""
        graded = part(0)
        with pytest.raises(ProtocolError, match=r"over the limit of .* on a graded part"):
            assembler().handle(graded, Delivery("q", "graded", encode(graded) + bytes(2 * 2**20)))

    def test_a_scan_with_too_many_pixels_is_refused(self, monkeypatch):
        monkeypatch.setattr("gliaflow_classifier.gathering.MAX_MASKS", 4 * 64)
        outcomes = run(stage := assembler(), [0, 1])
        assert predictions(outcomes) == []
        with pytest.raises(ProtocolError, match="the masks of this scan have over 256 pixels"):
            deliver(stage, part(2))

    def test_the_first_of_two_copies_of_a_part_is_acknowledged_at_once(self):
        stage = assembler()
        first, _ = deliver(stage, part(0), 1)
        assert deliver(stage, part(0), 2)[1].done == [first]
