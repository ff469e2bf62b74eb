"""Online imitation: the student visits, the expert labels, and everything seen so far is trained on."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.demos.hdf5 import DemoFile
from robopolicy.experiment import ConfigError, DemoFacts, ExperimentConfig, build_policy, load_policy, read_provenance
from robopolicy.model.policy import ChunkPolicy
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import ActionNoise, ExpertActor
from robopolicy.training.online import RelabelingActor, Rounds, dagger, relabeled_episodes
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


class Expert:
    """Labels everything with zeros."""

    width = 7

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:  # noqa: D102
        pass

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:  # noqa: D102
        return np.zeros((2, self.width)), np.zeros((2, self.width))


def acted(share: float, seeds: Sequence[int], steps: int = 400) -> np.ndarray:
    """(steps, 2): True where the expert's action was executed."""
    actor = RelabelingActor(Student(), Expert(), share)
    actor.reset(np.array([True, True]), seeds)
    pairs = [actor.act({}, ["", ""]) for _ in range(steps)]
    assert all((label == 0).all() for label, _ in pairs)
    return np.array([(action == 0).all(axis=1) for _, action in pairs])


def test_the_student_acts_and_the_expert_labels() -> None:
    """Guards against: labels taken from the student, or an expert that acts and never sees the student's mistakes."""
    assert not acted(0.0, [1, 2]).any()
    assert acted(1.0, [1, 2]).all()


def test_the_mixture_depends_on_the_episodes_seed_alone() -> None:
    """Guards against: a mixture that depends on the number of worlds, and can't be reproduced."""
    ours, swapped = acted(0.5, [1, 2]), acted(0.5, [2, 1])
    assert 100 < ours[:, 0].sum() < 300
    np.testing.assert_array_equal(ours, swapped[:, ::-1])


def test_student_and_expert_act_in_turns() -> None:
    """Guards against: draws for each step, after which the student never gets far from the expert's course."""
    changes = np.diff(acted(0.5, [1, 2], 4000).astype(int), axis=0) != 0
    assert 4000 / 60 < changes[:, 0].sum() < 4000 / 30  # half of the draws, every 20 steps, change who acts


def test_the_experts_turns_may_have_noise() -> None:
    """Guards against: an expert that shows no recovery in its turns, or noise in the labels."""
    expert = Expert()
    expert.act = lambda obs, instructions: (np.zeros((2, 7)), np.full((2, 7), 0.5))  # type: ignore[method-assign]
    actor = RelabelingActor(Student(), expert, 1.0)
    actor.reset(np.array([True, True]), [1, 2])
    label, action = actor.act({}, ["", ""])
    assert (label == 0).all()
    assert (action == 0.5).all()


def test_a_reset_begins_one_worlds_mixture_and_leaves_the_other() -> None:
    """Guards against: a reset of all worlds' draws at every episode's end, which would correlate the episodes."""
    actor = RelabelingActor(student := Student(), Expert(), 0.5)
    actor.reset(np.array([True, True]), [1, 2])
    for _ in range(20):
        actor.act({}, ["", ""])
    actor.reset(np.array([True, False]), [3, 2])
    rest = np.array([(actor.act({}, ["", ""])[1] == 0).all(axis=1) for _ in range(20)])
    np.testing.assert_array_equal(rest[:, 0], acted(0.5, [3, 9])[:20, 0])
    np.testing.assert_array_equal(rest[:, 1], acted(0.5, [1, 2])[20:40, 1])
    assert student.resets == [[True, True], [True, False]]


def test_a_share_that_is_no_share_is_refused() -> None:
    """Guards against: a share in percent, which would let the expert act always."""
    with pytest.raises(ValueError, match=r"expert_share is 30\.0"):
        RelabelingActor(Student(), Expert(), 30.0)


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
    """Guards against: rounds that forget the demonstrations, and `--round-weights last` that starts over."""
    seen: list[tuple[int, torch.Tensor]] = []

    def roll_out(policy: ChunkPolicy, number: int, written: Sequence[int]) -> Iterator[list[Demo]]:
        seen.append((number, vector(policy)))
        yield from ([make_demo(10 * number + place)] for place in range(3))

    folder = dagger(config, tmp_path, Rounds(2, round_steps=2, weights="last"), roll_out)
    assert folder == tmp_path / "round_2"
    assert [number for number, _ in seen] == [1, 2]
    assert torch.equal(seen[1][1], vector(load_policy(tmp_path / "round_1")))
    files = [file["name"] for file in read_provenance(folder)["files"]]
    assert files == ["tiny.hdf5", "round_1.hdf5", "round_2.hdf5"]
    before, after = (vector(load_policy(tmp_path / f"round_{number}")) for number in (1, 2))
    assert 0 < (after - before).norm() < 0.2 * before.norm()


def test_an_interrupted_call_keeps_the_episodes_that_ended(
    config: ExperimentConfig, make_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """Guards against: a kill that costs the round's episodes, and one that is written twice."""
    asked: list[tuple[int, list[int]]] = []

    def roll_out(policy: ChunkPolicy, number: int, written: Sequence[int]) -> Iterator[list[Demo]]:
        asked.append((number, list(written)))
        for seed in (number, number + 1):
            if seed not in written:
                yield [make_demo(seed)]
            if len(asked) == 2:
                raise KeyboardInterrupt

    measured = lambda policy: {"success_rate": 0.5}  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        dagger(config, tmp_path, Rounds(2), roll_out, measure=measured)
    dagger(config, tmp_path, Rounds(2), roll_out, measure=measured)
    assert asked == [(1, []), (2, []), (2, [2])]
    with DemoFile(tmp_path / "round_2.hdf5") as file:
        assert [file.read(name).seed for name in file.names] == [2, 3]
    rows = json.loads((tmp_path / "dagger.json").read_text())["rounds"]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert rows[2]["demos"] == 2
    assert rows[2]["labeled_steps"] == 20
    assert rows[2]["success_rate"] == 0.5


def test_new_words_in_a_round_are_learned(
    config: ExperimentConfig, make_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """Guards against: instructions that the first demos lack, which would all be one unknown word."""
    demo = replace(make_demo(3), instruction="lift the green cube")
    folder = dagger(
        config, tmp_path, Rounds(1, round_steps=1, weights="last"), lambda policy, number, written: [[demo]]
    )
    before, after = (load_policy(each).text for each in (tmp_path / "round_0", folder))
    assert after.vocabulary.words == (*before.vocabulary.words, "green")


def test_only_the_newest_rounds_are_kept(
    config: ExperimentConfig, make_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """Guards against: an aggregate that outgrows the memory, or one that drops the demonstrations."""
    roll_out = lambda policy, number, written: [[make_demo(number)]]  # noqa: E731
    folder = dagger(config, tmp_path, Rounds(3, round_steps=1, keep_rounds=2), roll_out)
    assert [file["name"] for file in read_provenance(folder)["files"]] == ["tiny.hdf5", "round_2.hdf5", "round_3.hdf5"]


def test_what_no_round_could_use_is_refused(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: plain training under another name, and weights for files that are yet to come."""
    with pytest.raises(ConfigError, match="--rounds must be >= 1, got 0"):
        Rounds(0)
    weighted = config.change({"data.file_weights": [1.0]})
    with pytest.raises(ConfigError, match="file_weights can't be used with dagger"):
        dagger(weighted, tmp_path, Rounds(1), lambda policy, number, written: [])


def test_an_expert_of_other_actions_is_refused() -> None:
    """Guards against: labels of another robot, which would be broadcast or fail deep inside."""
    expert = Expert()
    expert.width = 6
    actor = RelabelingActor(Student(), expert, 0.5)
    actor.reset(np.array([True, True]), [1, 2])
    with pytest.raises(ConfigError, match=r"the expert's actions have shape \(2, 6\), the policy's \(2, 7\)"):
        actor.act({}, ["", ""])


def test_relabeled_episodes_of_the_simulator_hold_the_experts_labels(config: ExperimentConfig) -> None:
    """Guards against: labels of the state after the step, or of another world."""
    seen = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
    policy = build_policy(config, DemoFacts(ActionSpec(arm=6, gripper=1), seen))
    env = RobotVectorEnv("reach", 2, num_threads=1, max_episode_steps=15)
    labels: list[np.ndarray] = []

    class Noting(ExpertActor):
        """Keeps its labels."""

        def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            """As the scripted expert."""
            label, _ = super().act(obs, instructions)
            labels.append(label)
            return label, label

    expert = Noting(env, ActionNoise.off())
    episodes = {episode.seed: episode for episode in relabeled_episodes(policy, env, [5, 6], expert)}
    env.close()
    for world, seed in enumerate((5, 6)):
        demo = episodes[seed].demos[0]
        assert demo is not None
        assert demo.executed_actions is not None
        np.testing.assert_allclose(demo.actions, np.stack(labels)[: len(demo), world])
        assert not np.allclose(demo.actions, demo.executed_actions)
