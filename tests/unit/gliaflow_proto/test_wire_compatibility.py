"""Compatibility: recorded bytes of schema gliaflow/1 must stay readable as long as the schema is."""

import numpy as np
from gliaflow_proto import Geometry, GradedMessage, Scan, decode

# without ``scan.attempt`` and ``mask.encoding``, which are optional
GRADED = bytes.fromhex(
    "89a6736368656d61aa676c6961666c6f772f31a46b696e64a6677261646564a26964a26d31a47363616e87a26964a27331aa7375626d69"
    "7373696f6ea3737562a46e616d65a5627261696ea770617469656e74a27031a6636f686f7274a0a56c6162656ca3484747a573706c6974"
    "c0a470617274920001a57472616365a0a662756e646c65a3624031a867656f6d6574727987a6616666696e65dc0010cb40000000000000"
    "0000000000cb400000000000000000000000cb401400000000000000000000cb3ff0000000000000a5736861706593040402ab6f726965"
    "6e746174696f6e96000101ff0201a66f726967696e92cb0000000000000000cbbff0000000000000a47374657092cb3ff0000000000000"
    "cb3fe0000000000000a473697a65920202a6736c69636573920001a774656e736f727382a56c6f67697484a56474797065a446503634a5"
    "73686170659102a8656e636f64696e67a3726177a464617461c410000000000000f83f00000000000000c0a46d61736b83a56474797065"
    "a555494e5438a5736861706593020202a464617461c4080001010000000001"
)


def test_a_recorded_message_of_the_first_version_is_readable():
    message = decode(GRADED)
    assert isinstance(message, GradedMessage)
    assert (message.id, message.part, message.trace, message.bundle) == ("m1", [0, 1], "", "b@1")
    assert message.scan == Scan(id="s1", submission="sub", name="brain", patient="p1", label="HGG")
    assert message.geometry == Geometry(
        affine=[2.0, 0, 0, 0, 0, 2.0, 0, 0, 0, 0, 5.0, 0, 0, 0, 0, 1.0],
        shape=[4, 4, 2],
        orientation=[0, 1, 1, -1, 2, 1],
        origin=[0.0, -1.0],
        step=[1.0, 0.5],
        size=[2, 2],
        slices=[0, 1],
    )
    np.testing.assert_array_equal(message.logit, [1.5, -2.0])
    np.testing.assert_array_equal(message.mask, [[[0, 1], [1, 0]], [[0, 0], [0, 1]]])
