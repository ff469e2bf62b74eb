"""A demo as a policy sees it."""

import re

import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, save_policy
from robopolicy.report.policy_page import glowing, look, write_policy_page
from robopolicy.types import ActionSpec, ArraySpec, Demo
from tests.experiment.test_run_folder import make_policy
from tests.small_runs import SMALL


@pytest.fixture
def demo():
    """Nine steps with one camera."""
    rng = np.random.default_rng(0)
    obs = {
        "ee_pose": rng.normal(size=(9, 7)).astype(np.float32),
        "front": rng.integers(0, 256, (9, 16, 16, 3), np.uint8),
    }
    actions = rng.normal(size=(9, 7)).astype(np.float32)
    return Demo(name="demo_0", obs=obs, actions=actions, instruction="lift <it>")


def test_the_page_shows_the_policys_own_chunks(demo):
    """Guards against: a plot of chunks from other frames, or from a memory that does not carry over."""
    policy = make_policy()
    seen, state = look(policy, demo), policy.initial_state(1)
    for step in range(len(demo)):
        frame = {key: torch.as_tensor(values[step : step + 1]) for key, values in demo.obs.items()}
        rows, state = policy.act({**frame, "instruction": demo.instruction}, state)
        np.testing.assert_array_equal(seen.chunks[step], rows[0].numpy())
    assert seen.steps.tolist() == list(range(9))
    assert seen.by_attention


@pytest.mark.parametrize("kind", ["pixels", "conv"])
def test_an_encoders_attention_is_a_share_of_the_image(demo, kind):
    """Guards against: maps of another shape, or of weights that were scaled away."""
    policy = make_policy(kind="pixels")
    if kind == "conv":
        policy = build_policy(
            ExperimentConfig().change(
                {name: value for name, value in SMALL.items() if name != "encoder.hidden"} | {"encoder.kind": kind}
            ),
            DemoFacts(policy.action_spec, policy.obs, policy.vocabulary),
        ).eval()
    obs = {key: torch.as_tensor(values[:3]) for key, values in demo.obs.items()}
    text = policy.text(policy.instruction_text("lift it", (3,)))
    (weights,) = policy.encoder.attention(policy.scaling(obs), text).values()
    assert weights.shape == (3, 4, 4)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(3))


def test_a_policy_without_attention_shows_what_moves_its_actions(demo):
    """Guards against: a map that is not of the covered part."""

    class OneCorner:
        """Acts on the mean of the image's upper left quarter."""

        def __init__(self):
            policy = make_policy()
            self.spec, self.initial_state = policy.spec, policy.initial_state

        def act(self, observation, state):
            """As `Policy`."""
            corner = np.asarray(observation["front"], np.float32)[:, :8, :8].mean(axis=(1, 2, 3)) - 100
            return np.tile(corner[:, None, None], (1, 2, 7)), state

        def predict(self, observation, state):
            """As `Policy`."""
            raise NotImplementedError

    seen = look(OneCorner(), demo)
    assert not seen.by_attention
    for weights in seen.maps["front"].values():
        assert weights.shape == (8, 8)
        assert (weights[4:] < 1e-5).all()
        assert (weights[:, 4:] < 1e-5).all()
        assert weights[:4, :4].max() == pytest.approx(1.0)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_token_that_changes_nothing_is_dark(pooling, tmp_path):
    """Guards against: weights of other tokens than those of the file, whatever the pooling."""
    changes = {"encoder.kind": "precomputed", "encoder.hidden": 0, "pooling.kind": pooling, "text.kind": "none"}
    obs = {"tokens": ArraySpec((5, 8))}
    policy = build_policy(ExperimentConfig().change(SMALL | changes), DemoFacts(ActionSpec(6, 1), obs, None)).eval()
    tokens = np.random.default_rng(0).normal(size=(4, 1, 8)).repeat(5, axis=1).astype(np.float32)
    tokens[:, 3] *= -4.0  # the others are equal, so the mean without one of them differs less
    demo = Demo("demo_0", {}, np.zeros((4, 7), np.float32), tokens=tokens)
    seen = look(policy, demo)
    assert sorted(seen.tokens) == [0, 1, 2, 3]
    for weights in seen.tokens.values():
        assert weights.argmax() == 3
        assert weights[3] == pytest.approx(1.0)
        np.testing.assert_allclose(weights[[0, 1, 2]], weights[4], atol=1e-3)
    assert "5 tokens" in write_policy_page(policy, demo, tmp_path / "page.html", "run").read_text()


def test_the_page_compares_every_column_with_the_demo(demo, tmp_path):
    """Guards against: a column without a figure, an instruction that is read as HTML."""
    text = write_policy_page(make_policy(), demo, tmp_path / "page.html", "run on <file>").read_text()
    assert text.count("<svg") == 7
    assert text.count("<img") == 6
    assert "lift &lt;it&gt;" in text
    assert "column 6 (gripper)" in text
    first = re.search(r"<td>0</td><td class=n>([\d.]+)</td>", text)
    seen = look(make_policy(), demo)
    assert float(first[1]) == pytest.approx(np.abs(seen.chunks[:, 0, 0] - demo.actions[:, 0]).mean(), rel=0.01)


def test_what_is_not_looked_at_is_dim_and_gray():
    """Guards against: an overlay that hides the image below it."""
    image = np.full((4, 4, 3), [200, 40, 40], np.uint8)
    shown = glowing(image, np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert shown[0, 0, 0] > 140
    assert shown[0, 0, 0] > shown[0, 0, 2] + 60
    assert len(set(shown[3, 3])) == 1
    assert shown[3, 3, 0] < 60


def test_view_writes_the_page_of_a_policy(tmp_path, tiny_demos, capsys):
    """Guards against: options of a policy that are ignored, and a page under a video's name."""
    save_policy(make_policy(kind="keys"), tmp_path / "run")
    assert main(["view", str(tiny_demos), "--policy", str(tmp_path / "run"), "--out", str(tmp_path / "a.mp4")]) == 2
    assert "expected .html at its end" in capsys.readouterr().err
    assert main(["view", str(tiny_demos), "--backbone", "auto"]) == 2
    assert "give --policy RUN" in capsys.readouterr().err
