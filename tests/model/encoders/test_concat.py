"""The encoder `concat`: all keys as one token."""

import numpy as np
import pytest
import torch

from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.normalization import KeyScaling
from robopolicy.model.statistics import Statistics
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


def test_differences_of_columns_that_are_alike_are_inputs_in_the_demos_units():
    """Guards against: a difference of normalized values, which means nothing, or one of unlike columns."""
    rng = np.random.default_rng(0)
    hand, cube = rng.normal([0.4, 0.1], [0.05, 0.1], (500, 2)), rng.normal([0.45, 0.1], [0.1, 0.06], (500, 2))
    rows = {"hand": hand, "cube": np.concatenate([cube, rng.normal(0, 9, (500, 1)), np.full((500, 1), 0.4)], axis=1)}
    statistics = {key: Statistics.of(values) for key, values in rows.items()}
    specs = {key: ArraySpec((values.shape[1],)) for key, values in rows.items()}
    scaling = KeyScaling(specs, statistics)
    inputs = EncoderInputs(scaling.scaled_specs, None, 0, statistics, scaling.units)
    encoder = make("encoder", "concat", inputs, width=5, layers=1, differences=True)
    obs = scaling({key: torch.from_numpy(values).float() for key, values in rows.items()})
    found = torch.cat([obs["hand"], obs["cube"]], dim=-1) @ encoder.differences.T
    used = found[:, found.std(dim=0) > 0]
    assert used.shape == (500, 2)  # x with x, y with y
    for axis in range(2):
        difference = torch.from_numpy(cube[:, axis] - hand[:, axis]).float()
        correlations = torch.corrcoef(torch.cat([difference[None], used.T]))[0, 1:].abs()
        assert correlations.max() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(used.std(dim=0), torch.ones(2), atol=0.1)
