"""The encoder `concat`: all keys as one token."""

import torch

from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.texts import TextTokens
from robopolicy.types import ArraySpec
from tests.making import make

OBS = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}


def test_one_token_holds_the_keys_side_by_side():
    """Guards against: keys in another order than declared, or a hidden layer that is not asked for."""
    encoder = make("encoder", "concat", EncoderInputs(OBS, None, 0), width=5, layers=1)
    obs = {"gripper": torch.randn(3, 1), "ee_pose": torch.randn(3, 7)}
    tokens = encoder(obs, None).tokens
    assert tokens.shape == (3, 1, 5)
    joined = torch.cat([obs["ee_pose"], obs["gripper"]], dim=-1)
    torch.testing.assert_close(tokens[:, 0], encoder.mlp[0](joined))


def test_the_instruction_enters_the_token_and_adds_none():
    """Guards against: instruction tokens of another width beside the one that the pooling passes on."""
    encoder = make("encoder", "concat", EncoderInputs(OBS, 4, 2), width=5, hidden=6, layers=3)
    assert encoder.token_count == 1
    obs = {"gripper": torch.randn(3, 1), "ee_pose": torch.randn(3, 7)}
    red, blue = (
        TextTokens(torch.randn(3, 2, 4), torch.ones(3, 2, dtype=torch.bool), torch.randn(3, 4)) for _ in range(2)
    )
    assert not torch.equal(encoder(obs, red).tokens, encoder(obs, blue).tokens)
