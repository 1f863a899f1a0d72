"""Messages: every kind round-trips, and a malformed one gives an error that names the field and takes no memory."""

import dataclasses
import tracemalloc
from contextlib import suppress

import msgpack
import numpy as np
import pytest
from gliaflow_proto import (
    KINDS,
    SEQUENCES,
    PredictionMessage,
    ProtocolError,
    Scan,
    ScanMessage,
    SequenceSource,
    SlicesMessage,
    Source,
    decode,
    encode,
    expect,
    is_announcement,
    message_id,
    routing_key,
    submission_queue,
)
from gliaflow_proto.geometry import MAX_VOXELS
from hypothesis import given
from hypothesis import strategies as st
from sample_messages import FEATURES, ONE_OF_EACH, SCAN_MESSAGE, SLICES, changed

PREDICTION = next(message for message in ONE_OF_EACH if isinstance(message, PredictionMessage))


def same(a, b):
    return type(a) is type(b) and all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    )


def test_the_samples_have_every_kind():
    assert {type(message) for message in ONE_OF_EACH} == set(KINDS.values())


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: m.kind)
@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_round_trip(message, encoding):
    assert same(decode(encode(message, encoding)), message)


text = st.text(max_size=50)
scans = st.builds(
    Scan,
    id=text,
    submission=st.from_regex(r"[A-Za-z0-9_-]{0,64}", fullmatch=True),
    name=text,
    patient=text,
    cohort=text,
    label=st.none() | text,
    split=st.none() | text,
)
sources = st.builds(Source, data=st.binary(max_size=99)) | st.builds(Source, uri=text)

sequences = st.dictionaries(
    st.sampled_from(SEQUENCES[1:]), st.builds(SequenceSource, source=sources, channel=st.none() | text)
)


@given(
    st.builds(
        ScanMessage,
        id=text,
        scan=scans,
        trace=text,
        source=sources,
        channel=st.none() | text,
        sequences=sequences,
    )
)
def test_any_scan_message_round_trips(message):
    assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_random_bytes_decode_or_raise_a_protocol_error(data):
    with suppress(ProtocolError):
        decode(data)


@given(st.data())
def test_a_truncated_or_altered_message_decodes_or_raises_a_protocol_error(data):
    body = bytearray(encode(data.draw(st.sampled_from(ONE_OF_EACH))))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ProtocolError):
        decode(bytes(body[: data.draw(st.integers(0, len(body)))]))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not a msgpack message"),
        (encode(SLICES)[:-1], "not a msgpack message"),
        (b"\x93\x01\x02\x03", "expected a msgpack map"),
        (msgpack.packb({1: 2}), "a map key is not text"),
        (changed(SLICES, schema="gliaflow/2"), "schema: 'gliaflow/2'"),
        (changed(SLICES, schema=...), "schema"),
        (changed(SLICES, kind="slides"), "kind: 'slides'"),
        (changed(SLICES, kind=["scan"]), "kind"),
        (changed(SLICES, id=...), "id: missing"),
        (changed(SLICES, id=7), "id: expected text, got an integer"),
        (changed(SLICES, id="x" * 5000), "id: text of 5000 characters, over the limit of 4096"),
        (changed(SLICES, scan="brain"), "scan: expected a map"),
        (changed(SLICES, scan__id=...), "scan.id: missing"),
        (changed(SLICES, scan__label=3), "scan.label"),
        (changed(SLICES, scan__submission="a.b"), "scan.submission"),
        (changed(SLICES, scan__submission="x" * 65), "scan.submission"),
        (bytes(17 * 2**20), "over the limit"),
        (changed(SLICES, part=[3, 3]), "part: expected"),
        (changed(SLICES, part=[0, 10**9]), "part: expected"),
        (changed(SLICES, part=[0, 1, 2]), "part: expected"),
        (changed(SLICES, tensors=[]), "tensors: expected a map"),
        (changed(SLICES, tensors__image=...), "tensors.image: missing"),
        (changed(SLICES, tensors__image__dtype="FP8"), "tensors.image.dtype"),
        (changed(SLICES, tensors__image__shape=[2, 1, 8, 9]), "tensors.image.data"),
        (changed(SLICES, geometry__affine=[1.0]), "geometry.affine: expected 16"),
        (changed(SLICES, geometry__affine=[float("nan")] * 16), "geometry.affine"),
        (changed(SLICES, geometry__shape=[4, 5, 2**40]), "geometry.shape"),
        (changed(SLICES, geometry__forms="none"), "geometry.forms: expected a map"),
        (changed(SLICES, geometry__forms__srow=[1.0]), "forms.srow: expected 12"),
        (changed(SLICES, geometry__forms__pixdim=[1e9] * 4), "forms.pixdim"),
        (changed(SLICES, geometry__forms__sform_code=2**16), "forms.sform_code"),
        (changed(SLICES, warnings="far"), "warnings: expected an array of texts, got text"),
        (changed(SLICES, warnings=[7]), r"warnings\[0\]: expected text, got an integer"),
        (changed(SLICES, warnings=["x"] * 33), "warnings: 33 texts"),
        (changed(PREDICTION, status="perhaps"), "status: 'perhaps'"),
        (changed(PREDICTION, slice_numbers=[1, 2]), "slice_p_hgg: 1 numbers for 2 slice_numbers"),
        (changed(PREDICTION, slice_numbers=[6]), "slice_numbers: expected rising numbers from 0 to 5"),
        (changed(PREDICTION, slice_numbers=[2, 1], slice_p_hgg=[0.5, 0.5]), "slice_numbers: expected rising"),
        (changed(PREDICTION, slice_p_hgg=[1.5]), "slice_p_hgg: expected probabilities"),
        (changed(PREDICTION, tumour_ml=-5.0), "tumour_ml: -5 is not from 0 to"),
        (changed(PREDICTION, tumour_ml=1e12), r"tumour_ml: 1e\+12 is not from 0 to"),
        (changed(PREDICTION, slices=10**9), "slices, tumour_slices"),
        (changed(PREDICTION, slices=3, tumour_slices=4), "slices, tumour_slices"),
        (changed(PREDICTION, grade="<b>"), "grade: '<b>' is not one of HGG, LGG"),
        (changed(SLICES, geometry__shape=[30000, 30000, 30000]), "geometry.shape"),
        (changed(SLICES, geometry__orientation=[0, 1, 0, 1, 2, 1]), "geometry.orientation"),
        (changed(SLICES, geometry__step=[0.0, 1.0]), "geometry.step"),
        (changed(SLICES, geometry__slices=[1, 6]), "geometry.slices"),
        (changed(SLICES, geometry__slices=[1, 1]), "geometry.slices"),
        (changed(SLICES, geometry__slices=[]), "geometry.slices"),
        (changed(SCAN_MESSAGE, source__uri=None), "source: expected exactly one"),
        (changed(SCAN_MESSAGE, source__data=b"x"), "source: expected exactly one"),
        (changed(SCAN_MESSAGE, sequences=["t1"]), "sequences: expected a map, got an array"),
        (changed(SCAN_MESSAGE, sequences__t1c={}), "sequences: 't1c' is not one of t1, t1ce, t2"),
        (changed(SCAN_MESSAGE, sequences__flair={}), "sequences: 'flair' is not one of"),
        (changed(SCAN_MESSAGE, sequences__t2=b"bytes"), "sequences.t2: expected a map, got binary"),
        (changed(SCAN_MESSAGE, sequences__t2={}), "sequences.t2.source: missing"),
        (changed(SCAN_MESSAGE, sequences__t1ce__channel=2), "sequences.t1ce.channel: expected text"),
        (changed(SCAN_MESSAGE, sequences__t1ce__source__uri="u"), "sequences.t1ce.source: expected exactly one"),
        (b"\x91" * 5000 + b"\x01", "not a msgpack message"),
    ],
)
def test_an_error_names_the_malformed_field(body, reason):
    with pytest.raises(ProtocolError, match=reason):
        decode(body)


def test_nested_arrays_with_billions_of_claimed_entries_take_little_memory():
    bomb = b"\xdd\x7f\xff\xff\xff" * 500  # arrays of 2,147,483,647 entries, each within the last
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode(bomb)
    with pytest.raises(ProtocolError):
        decode(b"\xdc\x1f\xff" * 500)  # arrays of the largest length that is allowed
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_millions_of_empty_arrays_in_one_message_take_little_memory():
    full = b"\xdc\x1f\xff" + b"\x90" * 8191  # an array of the largest length that is allowed, of empty ones
    bomb = b"\xdc\x00\xff" + full * 255
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="over 256 arrays and maps"):
        decode(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_message_of_an_earlier_version_has_no_warnings_no_forms_and_the_status_ok():
    slices = decode(changed(SLICES, warnings=..., geometry__forms=...))
    prediction = decode(changed(PREDICTION, warnings=..., status=..., trained_on=..., forms=...))
    assert (slices.warnings, slices.geometry.forms) == ([], None)
    assert decode(changed(SCAN_MESSAGE, sequences=...)).sequences == {}
    assert decode(changed(SCAN_MESSAGE, sequences__t1ce=None)).sequences == {}
    assert (prediction.warnings, prediction.status, prediction.trained_on, prediction.forms) == ([], "ok", "", None)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: m.kind)
def test_nil_is_the_same_as_a_field_that_is_left_out(message):
    """Many languages write all fields of an object, and nil for those without a value."""

    def optional(value):
        has_default = (f for f in dataclasses.fields(value) if f.default is not f.default_factory)
        return [f.name for f in has_default]

    nested = [f.name for f in dataclasses.fields(message) if dataclasses.is_dataclass(getattr(message, f.name))]
    paths = [*optional(message), *(f"{at}__{name}" for at in nested for name in optional(getattr(message, at)))]
    if isinstance(message, ScanMessage):
        paths.remove("source__uri")  # one of the three is needed
    assert "trace" in paths
    assert "scan__submission" in paths
    assert same(decode(changed(message, **dict.fromkeys(paths))), decode(changed(message, **dict.fromkeys(paths, ...))))
    if not hasattr(message, "bundle"):
        assert same(decode(changed(message, tensors=None)), message)


def test_an_integer_is_also_a_number():
    assert decode(changed(SLICES, scan__sent=1, geometry__step=[1, 2])).geometry.step == [1.0, 2.0]


def test_an_unknown_field_is_ignored():
    assert same(decode(changed(SLICES, mood="bright", scan__mood="calm")), SLICES)


def test_an_error_names_the_expected_kind():
    with pytest.raises(ProtocolError, match="expected 'slices', got 'features'"):
        expect(FEATURES, SlicesMessage)


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
@pytest.mark.parametrize("message", ONE_OF_EACH)
def test_without_contents_all_other_fields_are_read_and_checked(message, encoding):
    head = decode(encode(message, encoding), contents=False)
    for field in dataclasses.fields(message):
        value, read = getattr(message, field.name), getattr(head, field.name)
        if isinstance(value, np.ndarray):
            assert (read.shape, read.dtype, set(read.strides)) == (value.shape, value.dtype, {0}), "it takes no memory"
        else:
            assert read == value
    tensor = {"dtype": "UINT8", "shape": [2**31 - 1], "encoding": "lz4", "data": b"1"}
    with pytest.raises(ProtocolError, match=r"tensors\.image\.shape"):
        decode(changed(SLICES, tensors={"image": tensor}), contents=False)


def test_ids_depend_on_all_their_parts():
    assert message_id("scan", 0, "extractor", "b@1") == message_id("scan", 0, "extractor", "b@1")
    assert message_id("scan", 0, "extractor", "b@1") != message_id("scan", 1, "extractor", "b@1")
    assert message_id("a", "bc") != message_id("ab", "c")


def test_routing_keys():
    keys = [routing_key(message) for message in ONE_OF_EACH]
    assert keys == [
        "scan.labelled",
        "slices",
        "features.labelled",
        "graded",
        "prediction.sub",
        "generate",
        "synthetic.sub",
        "failure.sub",
    ]
    unlabelled = dataclasses.replace(FEATURES, scan=Scan(id="s"))
    assert routing_key(unlabelled) == "features.unlabelled"
    unrequested = dataclasses.replace(ONE_OF_EACH[6], scan=Scan(id="s"))
    assert routing_key(unrequested) == "synthetic.balance"
    assert [m.kind for m in ONE_OF_EACH if is_announcement(m)] == ["prediction", "synthetic", "failure"]
    assert submission_queue("sub").keys == ("prediction.sub", "failure.sub", "synthetic.sub")


def test_a_prediction_may_have_the_largest_tumour_that_stages_can_find():
    """The most voxels, each 100 mm a side."""
    largest = MAX_VOXELS * 1000.0
    assert decode(changed(PREDICTION, tumour_ml=largest)).tumour_ml == largest
