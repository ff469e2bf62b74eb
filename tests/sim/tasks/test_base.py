"""What every task must keep to."""

import numpy as np
import pytest

from robopolicy.components import kinds
from robopolicy.rollout.episodes import run_steps
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import ActionNoise, ExpertActor
from robopolicy.sim.scene import build_scene
from robopolicy.sim.tasks import make_task
from robopolicy.sim.tasks._moves import displacement_from_above, nearness
from robopolicy.sim.tasks.base import TABLE_X, TABLE_Y, place_apart


@pytest.mark.parametrize("name", kinds("task"))
def test_an_episode_is_determined_by_its_random_generator(name):
    """Guards against: a draw from elsewhere, which would make a seed's scene differ from run to run."""
    task = make_task(name)
    scene = build_scene(task.parts, robot=task.robot)
    one, other = (task.sample(scene, np.random.default_rng(5)) for _ in range(2))
    assert one.instructions == other.instructions
    for field in ("goals", "qpos", "mocap_pos"):
        assert np.array_equal(getattr(one, field), getattr(other, field))


SHOWN = ("count", "handover", "sequence", "swap")
"""Tasks whose instruction is always the same."""


@pytest.mark.parametrize("name", [name for name in kinds("task") if name not in SHOWN])
def test_every_goal_has_its_own_instruction_and_the_other_way_round(name):
    """Guards against: two goals with one sentence, which no policy could distinguish."""
    task = make_task(name)
    scene = build_scene(task.parts, robot=task.robot)
    pairs = set()
    for seed in range(60):
        setup = task.sample(scene, np.random.default_rng(seed))
        named = setup.goals[:, :1] if name.startswith("recall") else setup.goals
        if name == "pillar":  # the side of a goal is the demonstrator's choice, not part of the request
            assert set(setup.instructions) == {"touch the lid behind the pillar"}
            return
        assert len(setup.instructions) == len(named)
        pairs |= {(sentence, tuple(goal)) for sentence, goal in zip(setup.instructions, named.tolist(), strict=True)}
    assert len({sentence for sentence, _ in pairs}) == len({goal for _, goal in pairs}) == len(pairs) > 1


@pytest.mark.parametrize("name", ["reach", "lift", "place", "stack", "recall"])
def test_placement_covers_the_table_and_nothing_overlaps(name):
    """Guards against: cubes that are drawn into each other, or a smaller area than the task states."""
    task = make_task(name)
    scene = build_scene(task.parts, robot=task.robot)
    points = []
    for seed in range(100):
        poses = task.sample(scene, np.random.default_rng(seed)).qpos[scene.object_slice].reshape(-1, 7)
        apart = np.linalg.norm(poses[:, None, :2] - poses[None, :, :2], axis=-1) + np.eye(len(poses))
        assert apart.min() >= 0.1
        points.append(poses[:, :2])
    spread = np.ptp(np.concatenate(points), axis=0)
    assert spread[0] > 0.28
    assert spread[1] > 0.38
    assert (TABLE_X[1] - TABLE_X[0], TABLE_Y[1] - TABLE_Y[0]) == pytest.approx((0.3, 0.4))


def test_points_keep_their_gap_to_those_taken():
    """Guards against: a plate put under a cube, which would make `place` solved before it begins."""
    taken = [np.array([0.5, 0.0])]
    points = place_apart(np.random.default_rng(0), 3, 0.12, taken)
    assert np.linalg.norm(points - taken[0], axis=1).min() >= 0.12


def test_unknown_task_is_refused_with_the_list_of_tasks():
    """Guards against: a typo in `--task` that ends in a KeyError without a hint."""
    with pytest.raises(ValueError, match=r"task 'lfit' is unknown; choose one of chain, .*lift, .*place"):
        make_task("lfit")
    with pytest.raises(ValueError, match=r"--task.wait; the options of task 'recall' are: cue_steps, delay_steps"):
        make_task("recall", wait=3)


@pytest.mark.parametrize("task", ["lift", "place", "stack"])
def test_progress_rises_to_one_with_the_expert(task):
    """Guards against: a shaped reward that leads away from success."""
    env = RobotVectorEnv(task, 4)
    expert = ExpertActor(env, ActionNoise.off())
    ended, began = {}, []
    for step in run_steps(env, expert, range(4)):
        began += step.info["progress"][step.steps == 1].tolist()
        assert (step.info["progress"] >= 0).all()
        assert (step.info["progress"] <= 1).all()
        ended |= {int(step.seeds[world]): step.info["progress"][world] for world in np.flatnonzero(step.ended)}
    env.close()
    assert max(began) < 0.5
    assert min(ended.values()) > 0.9


def test_beside_its_spot_a_cube_makes_progress_by_rising():
    """Guards against: progress that is highest with the cube pressed against the one that it should be put on."""
    at = {
        "beside": [0.045, 0.0, 0.04],
        "raised": [0.045, 0.0, -0.01],
        "over": [0.0, 0.0, -0.03],
        "there": [0.0, 0.0, 0.0],
    }
    near = nearness(displacement_from_above(np.array(list(at.values()))), 0.1)
    assert (np.diff(near) > 0.05).all()
    assert near[-1] == 1
