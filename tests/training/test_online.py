"""Online imitation: the student visits, the expert labels, and everything seen so far is trained on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.demos.hdf5 import DemoFile
from robopolicy.experiment import ConfigError, DemoFacts, ExperimentConfig, build_policy, load_policy, read_provenance
from robopolicy.model.policy import ChunkPolicy
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.training.online import RelabelingActor, dagger, relabeled_episodes
from robopolicy.types import ActionSpec, ArraySpec, Demo
from tests.small_runs import SMALL


class Student:
    """Always closes the gripper; remembers which worlds were reset."""

    def __init__(self) -> None:
        self.resets: list[list[bool]] = []

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:  # noqa: D102
        self.resets.append(done.tolist())

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:  # noqa: D102
        return np.ones((2, 7)), np.ones((2, 7))


def acted(share: float, seeds: Sequence[int], steps: int = 40) -> np.ndarray:
    """(steps, 2): True where the expert's action was executed."""
    actor = RelabelingActor(Student(), lambda: np.zeros((2, 7)), share)
    actor.reset(np.array([True, True]), seeds)
    pairs = [actor.act({}, ["", ""]) for _ in range(steps)]
    assert all((label == 0).all() for label, _ in pairs)
    return np.array([(action == 0).all(axis=1) for _, action in pairs])


def test_the_student_acts_and_the_expert_labels() -> None:
    """Labels taken from the student teach it its own mistakes; an expert that acts never shows them."""
    assert not acted(0.0, [1, 2]).any()
    assert acted(1.0, [1, 2]).all()


def test_the_mixture_depends_on_the_episodes_seed_alone() -> None:
    """A mixture that depends on the world makes rounds with another number of worlds irreproducible."""
    ours, swapped = acted(0.5, [1, 2]), acted(0.5, [2, 1])
    assert 10 < ours[:, 0].sum() < 30
    np.testing.assert_array_equal(ours, swapped[:, ::-1])


def test_a_reset_begins_one_worlds_mixture_and_leaves_the_other() -> None:
    """A reset of all worlds' draws at every episode's end would correlate the episodes."""
    actor = RelabelingActor(student := Student(), lambda: np.zeros((2, 7)), 0.5)
    actor.reset(np.array([True, True]), [1, 2])
    for _ in range(20):
        actor.act({}, ["", ""])
    actor.reset(np.array([True, False]), [3, 2])
    rest = np.array([(actor.act({}, ["", ""])[1] == 0).all(axis=1) for _ in range(20)])
    np.testing.assert_array_equal(rest[:, 0], acted(0.5, [3, 9])[:20, 0])
    np.testing.assert_array_equal(rest[:, 1], acted(0.5, [1, 2])[20:, 1])
    assert student.resets == [[True, True], [True, False]]


def test_a_share_that_is_no_share_is_refused() -> None:
    """A share in percent would let the expert act always."""
    with pytest.raises(ValueError, match=r"expert_share is 30\.0"):
        RelabelingActor(Student(), lambda: np.zeros((2, 7)), 30.0)


@pytest.fixture
def config(tiny_demos: Path) -> ExperimentConfig:
    changes = {
        "data.files": [str(tiny_demos)],
        "data.batch_size": 8,
        "training.max_steps": 4,
        "training.valid_every": 4,
    }
    return ExperimentConfig().change(SMALL | changes)


def vector(policy: ChunkPolicy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_each_round_trains_on_all_demos_so_far_from_the_last_rounds_weights(
    config: ExperimentConfig, make_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """Forgetting earlier rounds unlearns the demonstrations; starting over each time wastes them."""
    seen: list[tuple[int, torch.Tensor]] = []

    def roll_out(policy: ChunkPolicy, number: int) -> Iterator[Demo]:
        seen.append((number, vector(policy)))
        yield from (make_demo(10 * number + place) for place in range(3))

    folder = dagger(config, tmp_path, rounds=2, roll_out=roll_out, round_steps=2)
    assert folder == tmp_path / "round_2"
    assert [number for number, _ in seen] == [1, 2]
    assert torch.equal(seen[1][1], vector(load_policy(tmp_path / "round_1")))
    files = [file["name"] for file in read_provenance(folder)["files"]]
    assert files == ["tiny.hdf5", "round_1.hdf5", "round_2.hdf5"]
    before, after = (vector(load_policy(tmp_path / f"round_{number}")) for number in (1, 2))
    assert 0 < (after - before).norm() < 0.2 * before.norm()


def test_an_interrupted_call_goes_on_with_the_round_it_was_in(
    config: ExperimentConfig, make_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """Rolling out and training again what is done already costs the night."""
    asked: list[int] = []

    def roll_out(policy: ChunkPolicy, number: int) -> Iterator[Demo]:
        asked.append(number)
        yield make_demo(number)
        if asked == [1, 2]:
            raise KeyboardInterrupt
        yield make_demo(number + 1)

    with pytest.raises(KeyboardInterrupt):
        dagger(config, tmp_path, rounds=2, roll_out=roll_out)
    dagger(config, tmp_path, rounds=2, roll_out=roll_out)
    assert asked == [1, 2, 2]
    with DemoFile(tmp_path / "round_2.hdf5") as file:
        assert len(file.names) == 2


def test_no_round_at_all_is_refused(config: ExperimentConfig, tmp_path: Path) -> None:
    """Zero rounds would be plain training under another name."""
    with pytest.raises(ConfigError, match="0 rounds"):
        dagger(config, tmp_path, rounds=0, roll_out=lambda policy, number: [])


def test_relabeled_episodes_of_the_simulator_hold_the_experts_labels(config: ExperimentConfig) -> None:
    """Labels of the state after the step, or of another world, would look right and teach nonsense."""
    seen = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
    policy = build_policy(config, DemoFacts(ActionSpec(arm=6, gripper=1), seen))
    env = RobotVectorEnv("reach", 2, num_threads=1, max_episode_steps=15)
    labels: list[np.ndarray] = []

    def expert(env: RobotVectorEnv) -> np.ndarray:
        labels.append(expert_actions(env))
        return labels[-1]

    episodes = {episode.seed: episode for episode in relabeled_episodes(policy, env, [5, 6], expert)}
    env.close()
    for world, seed in enumerate((5, 6)):
        demo = episodes[seed].demos[0]
        assert demo is not None
        assert demo.executed_actions is not None
        np.testing.assert_allclose(demo.actions, np.stack(labels)[: len(demo), world])
        assert not np.allclose(demo.actions, demo.executed_actions)
