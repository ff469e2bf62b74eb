"""The file that runs in a simulator's own interpreter."""

import ast
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import point_envs
import pytest

from robopolicy.rollout import env_runner


def test_the_runner_is_one_file_of_old_syntax():
    """Guards against: a runner that needs robopolicy, or a newer Python than the simulator's."""
    tree = ast.parse(Path(env_runner.__file__).read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy", "gymnasium"}
    newer = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)]
    assert not newer  # `X | None` in annotations fails before 3.10


def test_the_first_image_shows_the_episodes_own_goal():
    """Guards against: Meta-World's first image, which shows the goal of the episode before."""
    session = env_runner.Session({"env": "point_envs:StalePoint", "render": True, "max_episode_steps": 5})
    for seed in (1, 2):
        _, arrays = session.reset(seed)
        assert arrays["render"][0, 0, 0] == int(100 * arrays["observation"][1])


def test_an_instruction_given_at_the_reset_holds_for_the_episode():
    """Guards against: environments refused that give the task in the info of `reset` only, as gymnasium's own do."""

    class SaysAtReset(point_envs.Point):
        def reset(self, **words):
            return super().reset(**words)[0], {"goal": f"go to {words['seed']}"}

    session = env_runner.Session({"env": "point_envs:Point", "instruction": {"info": "goal"}, "max_episode_steps": 5})
    session.env = SaysAtReset()
    for seed in (1, 2):
        frames = [session.reset(seed)[0], session.step(np.zeros(1))[0]]
        assert [frame["instruction"] for frame in frames] == [f"go to {seed}"] * 2


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, np.bool_, np.int64])
def test_messages_arrive_as_they_were_sent(kind):
    """Guards against: observations that change on their way between processes."""
    ours, theirs = multiprocessing.Pipe()
    arrays = {"a": np.arange(6).reshape(2, 3).astype(kind), "empty": np.zeros((0, 2), kind), "one": np.array(1, kind)}
    env_runner.send(ours, {"do": "step", "n": 3}, arrays)
    message, got = env_runner.receive(theirs)
    assert message == {"do": "step", "n": 3}
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype
    ours.close()
    with pytest.raises(EOFError):
        env_runner.receive(theirs)
    theirs.close()


def test_a_path_sets_every_entry_of_a_list():
    """Guards against: one robot of several that keeps its own random numbers."""

    class Part:
        rng = 0

    owner = Part()
    owner.robots = [Part(), Part()]  # type: ignore[attr-defined]
    env_runner.set_path(owner, "robots.*.rng", 5)
    assert [robot.rng for robot in owner.robots] == [5, 5]
    assert owner.rng == 0


def test_a_number_in_a_path_is_one_entry():
    """Guards against: a map that can't move one camera of several."""

    class Model:
        cam_pos = np.zeros((3, 3))

    owner = Model()
    owner.model = Model()  # type: ignore[attr-defined]
    env_runner.set_path(owner, "model.cam_pos.2", [0.6, 0.3, 0.8])
    np.testing.assert_array_equal(owner.model.cam_pos, [[0, 0, 0], [0, 0, 0], [0.6, 0.3, 0.8]])
    env_runner.set_path(owner, "model.cam_pos.2.0", 1.0)
    assert owner.model.cam_pos[2, 0] == 1.0
