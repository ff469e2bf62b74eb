"""Policies in environments of others: what meets what, what is counted, and what a broken simulator does."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import point_envs
import pytest

import robopolicy
from robopolicy.rollout.env_map import EnvMap
from robopolicy.rollout.env_map_parts import EnvMapError
from robopolicy.rollout.env_runner import EnvSetupError
from robopolicy.rollout.env_worlds import open_worlds
from robopolicy.rollout.evaluate import evaluate_in_worlds
from robopolicy.types import ActionSpec, ArraySpec

LIMIT = {"max_episode_steps": 20}
SEEDS = range(10, 16)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other interpreters find `point_envs` too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))


def test_a_flat_observation_needs_no_map(policy):
    """Guards against: a map for what can be meant in one way only."""
    result = robopolicy.evaluate(policy, "point_envs:PointInTime-v0", SEEDS)
    assert (result.successes, result.episodes, result.control_dt) == (6, 6, 0.1)
    assert result.figures["return"] == 1.0
    assert [outcome["seed"] for outcome in result.outcomes] == list(SEEDS)


def test_a_callable_makes_the_environments(policy):
    """Guards against: environments that have to be registered before they can be tried."""
    assert robopolicy.evaluate(policy, lambda: point_envs.Point(gain=0.4), SEEDS, env_map=LIMIT).successes == 6


def test_goal_conditioned_arrays_are_joined_in_the_order_given(policy):
    """Guards against: a policy that takes the goal for the place."""
    observation = {"state": ["observation", "desired_goal"]}
    assert (
        robopolicy.evaluate(
            policy, "point_envs:GoalPoint", SEEDS, env_map={**LIMIT, "observation": observation}
        ).successes
        == 6
    )
    observation = {"state": ["desired_goal", "observation"]}
    assert (
        robopolicy.evaluate(
            policy, "point_envs:GoalPoint", SEEDS, env_map={**LIMIT, "observation": observation}
        ).successes
        == 0
    )


def test_an_image_is_turned_upright_and_resized(walker):
    """Guards against: a camera that is upside down, mirrored in its colors or of another size than in training."""
    seeing = walker({"state": ArraySpec((2,)), "front": ArraySpec((8, 8, 3), "uint8")})
    keys = {"state": "agent/state", "front": {"from": "images/front", "layout": "chw", "flip": "vertical"}}
    assert (
        robopolicy.evaluate(seeing, "point_envs:NestedPoint", [1], env_map={**LIMIT, "observation": keys}).successes
        == 1
    )
    image = seeing.last["front"][0]
    assert image.shape == (8, 8, 3)
    assert image[0, 0].tolist() == [200, 200, 200]
    assert image[4:].sum() == 0


def test_the_environments_own_render_can_be_a_camera(walker):
    """Guards against: image policies that can't be tried where images come from `render()` only."""
    seeing = walker({"state": ArraySpec((2,)), "top": ArraySpec((8, 8, 3), "uint8")})
    keys = {"state": "observation", "top": "render"}
    robopolicy.evaluate(seeing, "point_envs:PointInTime-v0", [1], env_map={"observation": keys})
    assert seeing.last["top"][0, 0, 0, 0] > 100


def test_the_instruction_is_read_from_the_environment(walker):
    """Guards against: an instruction-conditioned policy that is evaluated with another instruction, or with none."""
    reading = walker({"state": ArraySpec((2,))}, text="a text model")
    given = {**LIMIT, "observation": {"state": "agent/state"}, "instruction": {"method": "get_instruction"}}
    result = robopolicy.evaluate(reading, "point_envs:NestedPoint", [1, 2], env_map=given)
    assert result.per_instruction == {"go to the goal": (2, 2)}
    assert reading.seen[0][1] == ("go to the goal", "go to the goal")
    with pytest.raises(EnvMapError, match="the --env-map could say instruction: TEXT"):
        robopolicy.evaluate(reading, "point_envs:PointInTime-v0", [1])


def test_old_gym_with_its_own_seeding_and_success(policy):
    """Guards against: robosuite-like environments that need code instead of a map."""
    given = {**LIMIT, "seeding": {"method": "seed"}, "success": {"method": "_check_success"}}
    first, again = (robopolicy.evaluate(policy, "point_envs:OldPoint", SEEDS, env_map=given) for _ in range(2))
    assert first.successes == 6
    assert [each["steps"] for each in first.outcomes] == [each["steps"] for each in again.outcomes]
    generators = {**given, "seeding": {"generators": ["generator"]}}
    other = robopolicy.evaluate(policy, "point_envs:OldPoint", SEEDS, env_map=generators)
    assert [each["steps"] for each in first.outcomes] == [each["steps"] for each in other.outcomes]


def test_stored_start_states_are_taken_by_seed(policy, tmp_path):
    """Guards against: benchmarks whose fixed start states are replaced by random ones."""
    np.save(tmp_path / "starts.npy", np.array([[0.0, 0.1], [0.0, 5.0]]))
    (tmp_path / "map.yaml").write_text(
        "max_episode_steps: 20\nsuccess: {method: _check_success}\nseeding: {method: seed}\n"
        "start_states: {file: starts.npy, method: set_init_state}\n"
    )
    result = robopolicy.evaluate(policy, "point_envs:OldPoint", range(4), env_map=tmp_path / "map.yaml")
    assert [outcome["steps"] for outcome in result.outcomes] == [1, 10, 1, 10]


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        ({"info": "is_success"}, 3),
        ({"info": "task/done"}, 3),
        ({"reward": 1.0}, 3),
        ({"return": 2.0, "stop": False}, 3),
        ({"info": "is_success", "when": "end"}, 3),
        ({"info": "is_success", "hold_steps": 3}, 3),
        ({"terminated": True}, 0),
        ({"return": 50.0}, 0),
        ({"info": "is_success", "hold_steps": 30}, 0),
    ],
)
def test_each_success_signal_counts_what_it_says(policy, success, expected):
    """Guards against: a success rate by another criterion than the benchmark's."""
    result = robopolicy.evaluate(policy, "point_envs:PointInTime-v0", range(3), env_map={"success": success})
    assert result.successes == expected


def test_actions_are_picked_scaled_and_clipped_and_clips_are_counted(walker):
    """Guards against: commands in other units than the environment's, and a clamp that nobody hears of."""
    wide = walker({"state": ArraySpec((2,))}, ActionSpec(arm=3, gripper=0))
    action = {"columns": [2], "scale": 10.0, "offset": 1.0, "clip": "space"}
    worlds = open_worlds("point_envs:PointInTime-v0", wide, [0], env_map=EnvMap.read({"action": action}))
    result = evaluate_in_worlds(wide, worlds, [0])
    assert result.figures["clipped_actions"] > 0.5
    sign = EnvMap.read({"action": {"sign": [1], "scale": [1.0, -1.0]}}).action
    assert sign(np.array([[0.3, 0.3], [0.3, -0.2]]), None)[0].tolist() == [[0.3, -1.0], [0.3, 1.0]]


@pytest.mark.parametrize("python", [None, sys.executable])
def test_a_broken_simulator_fails_its_episode_only(policy, python):
    """Guards against: an evaluation that is lost with one episode, or that waits for ever for one."""
    seeds = [0, 1, 2, 5, 6] if python is None else [0, 1, 2, 4, 5, 6]  # 4 ends the process
    given = {**LIMIT, "step_timeout_s": 1.0 if python is None else 3.0, "action": {"scale": 0.2}}
    result = robopolicy.evaluate(policy, "point_envs:BrokenPoint", seeds, env_map=given, env_python=python, num_envs=2)
    assert [outcome["seed"] for outcome in result.outcomes if outcome["success"]] == [0, 6]
    named = {seed: fault for fault, broken in result.faults.items() for seed in broken}
    assert "the solver diverged" in named[1]
    assert "no reply within" in named[2]
    assert "no collision-free start" in named[5]
    if python is not None:
        assert "exit code 9" in named[4]


def test_an_observation_that_is_not_finite_fails_its_episode(policy):
    """Guards against: NaN out of a simulator in the memory of a policy, and in its neighbors' batch."""
    given = {**LIMIT, "action": {"scale": 0.2}}
    result = robopolicy.evaluate(policy, "point_envs:BrokenPoint", [0, 3, 6], env_map=given)
    assert result.faults == {"observation 'state' is not finite": [3]}
    assert result.successes == 2


def test_processes_find_what_one_process_does(policy):
    """Guards against: results that depend on where the simulator runs."""
    here = robopolicy.evaluate(policy, "point_envs:PointInTime-v0", SEEDS)
    there = robopolicy.evaluate(policy, "point_envs:PointInTime-v0", SEEDS, env_python=sys.executable, num_envs=2)
    assert here.outcomes == there.outcomes


def test_memory_begins_with_each_episode_and_sees_every_frame(policy):
    """Guards against: an episode that starts with the memory of the last one, and frames that are skipped."""
    robopolicy.evaluate(policy, "point_envs:PointInTime-v0", range(4), num_envs=1)
    frames = [int(seen[0]) for seen, _ in policy.seen]
    assert frames.count(1) == 4
    assert all(later in (1, earlier + 1) for earlier, later in pairwise(frames))


@pytest.mark.parametrize(
    ("env", "given", "message"),
    [
        ("point_envs:PointInTime-v9", {}, "--env point_envs:PointInTime-v9: .*PointInTime"),
        ("no_such_module:Task", {}, "No module named 'no_such_module' .needed for --env no_such_module:Task"),
        ("point_envs:Point", {}, "give --env-map FILE with a line max_episode_steps: N"),
        ("point_envs:Point", {"make": {"kwargs": {"color": 1}}}, "unexpected keyword argument 'color'"),
        ("point_envs:Discrete", LIMIT, "action space is Discrete.3.; expected a Box"),
        ("point_envs:PointInTime-v0", {"success": {"info": "won"}}, "info has no won .it has: is_success, task"),
        ("point_envs:Point", {"make": {"factory": "Nothing"}}, "no Nothing in point_envs; it has: .*GoalPoint"),
    ],
)
def test_an_environment_that_cannot_be_made_says_what_to_do(policy, env, given, message):
    """Guards against: a traceback out of a library as the answer to a typing mistake."""
    with pytest.raises(EnvSetupError, match=message) as refused:
        robopolicy.evaluate(policy, env, [0], env_map=given)
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_names_the_key_its_shape_and_the_remedy(walker, policy):
    """Guards against: a shape error out of a layer of the network, an hour's search away from the map."""
    with pytest.raises(EnvMapError, match=r"key 'state' \(2,\) is not .*could say observation: .*achieved_goal \(1,\)"):
        robopolicy.evaluate(policy, "point_envs:GoalPoint", [0], env_map=LIMIT)
    with pytest.raises(
        EnvMapError, match=r"'state' has shape \(2,\), the environment gives observation \(1,\): 1 numbers"
    ):
        robopolicy.evaluate(
            policy, "point_envs:GoalPoint", [0], env_map={**LIMIT, "observation": {"state": "observation"}}
        )
    seeing = walker({"state": ArraySpec((2,)), "front": ArraySpec((8, 8, 3), "uint8")})
    keys = {"state": "agent/state", "front": {"from": "images/front"}}
    with pytest.raises(EnvMapError, match=r"camera 'front' takes uint8 images such as \(8, 8, 3\); .*layout: chw"):
        robopolicy.evaluate(seeing, "point_envs:NestedPoint", [0], env_map={**LIMIT, "observation": keys})
    wide = walker({"state": ArraySpec((2,))}, ActionSpec(arm=4, gripper=0))
    with pytest.raises(EnvMapError, match=r"rows have 4 columns; the environment takes 1 .*could say action: .columns"):
        robopolicy.evaluate(wide, "point_envs:PointInTime-v0", [0])
