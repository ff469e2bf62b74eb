"""Which observations an encoder refuses; `robopolicy.testing.encoder` holds what all encoders promise."""

import pytest

from robopolicy.components import ConfigError, build, options_from
from robopolicy.model.encoders import EncoderInputs
from robopolicy.types import ArraySpec

LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
FRONT = ArraySpec((16, 16, 3), "uint8")


@pytest.mark.parametrize(
    ("kind", "obs", "message"),
    [
        ("keys", {}, "give --data.obs_keys"),
        ("keys", {**LOW_DIM, "front": FRONT}, "can't use the camera 'front'; choose --encoder.kind pixels"),
        ("keys", {**LOW_DIM, "tokens": ArraySpec((5, 9))}, "can't use the key 'tokens'"),
        ("pixels", LOW_DIM, "give --data.cameras"),
        ("pixels", {"front": FRONT, "tokens": ArraySpec((5, 9))}, "can't use the key 'tokens'"),
        ("precomputed", LOW_DIM, "which have: ee_pose, gripper; write it with `robopolicy encode`"),
        ("precomputed", {"tokens": ArraySpec((5, 9)), "front": FRONT}, "can't use the camera 'front'"),
        ("transformers", LOW_DIM, "give --data.cameras"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(kind, obs, message):
    """Guards against: an encoder without its input, or one that silently ignores an observation."""
    with pytest.raises(ConfigError, match=message):
        build(options_from("encoder", kind, {}), EncoderInputs(obs, None, 0))


def test_auto_is_pixels_with_cameras_and_keys_without():
    """Guards against: one config for a family of files that can't be trained on those without cameras."""
    options = options_from("encoder", "auto", {"width": 8})
    assert type(build(options, EncoderInputs(LOW_DIM, None, 0))).__name__ == "KeysEncoder"
    assert type(build(options, EncoderInputs({**LOW_DIM, "front": FRONT}, None, 0))).__name__ == "PixelsEncoder"
