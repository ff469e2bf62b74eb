"""The encoder `conv`: keypoints of strided convolutions."""

import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.encoders.conv import spatial_softmax
from robopolicy.types import ArraySpec
from tests.making import make

CAMERA = ArraySpec((42, 60, 3), "uint8")


def test_a_keypoint_is_where_its_feature_is():
    """Guards against: rows and columns exchanged, or positions that autocast rounds to bfloat16."""
    features = torch.zeros(1, 2, 50, 80)
    features[0, 0, 7, 61] = features[0, 1, 40, 3] = 100.0
    with torch.autocast("cpu", torch.bfloat16):
        points = spatial_softmax(features)
    expected = torch.tensor([[[123 / 80 - 1, 15 / 50 - 1], [7 / 80 - 1, 81 / 50 - 1]]])
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-5)


def test_cameras_of_other_channels_need_a_network_each():
    """Guards against: a depth camera that goes through a color camera's network, or fails in a traceback."""
    inputs = EncoderInputs({"front": CAMERA, "depth": ArraySpec((42, 60, 1), "uint8")}, None, 0)
    with pytest.raises(ConfigError, match="front 3, depth 1"):
        make("encoder", "conv", inputs, width=8, channels=(4, 4, 4))
    encoder = make("encoder", "conv", inputs, width=8, channels=(4, 4, 4), shared=False)
    obs = {key: torch.zeros(2, *spec.shape, dtype=torch.uint8) for key, spec in inputs.obs.items()}
    assert encoder(obs, None).tokens.shape == (2, 1, 8)


def test_resize_lowers_the_number_of_cells():
    """Guards against: large images whose every pixel is convolved although a size is given."""
    inputs = EncoderInputs({"front": ArraySpec((480, 640, 3), "uint8")}, None, 0)
    encoder = make("encoder", "conv", inputs, width=8, channels=(4, 4), resize=(24, 32))
    sizes = []
    encoder.trunks[0].register_forward_hook(lambda module, given, out: sizes.append(out.shape[-2:]))
    encoder({"front": torch.zeros(1, 480, 640, 3, dtype=torch.uint8)}, None)
    assert sizes == [(6, 8)]


def test_an_untrained_encoder_tells_a_patch_here_from_one_there():
    """Guards against: keypoints that stay in the middle of the image at first, so that training doesn't find the images."""
    torch.manual_seed(0)
    encoder = make("encoder", "conv", EncoderInputs({"front": CAMERA}, None, 0), width=8)
    images = torch.full((2, *CAMERA.shape), 128, dtype=torch.uint8)
    images[0, 20:28, 8:16], images[1, 20:28, 44:52] = 148, 148
    with torch.no_grad():
        here, there = spatial_softmax(encoder.trunks[0](images.permute(0, 3, 1, 2) / 127.5 - 1))
    assert (here - there)[:, 0].abs().max() > 0.2
