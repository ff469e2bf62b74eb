"""Environment maps as YAML: what is understood, and what is refused in one line."""

import pytest

from robopolicy.rollout.env_map import EnvMap, task_name
from robopolicy.rollout.env_map_parts import EnvMapError


def test_the_example_in_the_documentation_is_read(tmp_path):
    """Guards against: documentation of options that do not exist."""
    from robopolicy.rollout import env_map

    text = str(env_map.__doc__).split("\n\n")[1].replace("kwargs: {...}", "kwargs: {size: 1}")
    (tmp_path / "map.yaml").write_text(text)
    read = EnvMap.read(tmp_path / "map.yaml")
    assert read.observation["state"].names == ("observation", "desired_goal")
    assert read.observation["gripper"].columns == (0, 1)
    assert read.observation["front"].flip == "vertical"
    assert read.action.clip == (-1.0, 1.0)
    assert read.instruction == "lift the red cube"
    assert read.folder == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("obsrvation: {}", "unknown option obsrvation; the keys of a map are: make, observation, action"),
        ("observation: {state: {form: a}}", "observation: state: expected `from: NAME`"),
        ("observation: {state: {columns: [0, 1]}}", "expected `from: NAME`"),
        ("observation: {state: {from: a, columns: [2, 1]}}", "expected .first, last"),
        ("observation: {front: {from: a, flip: left}}", "flip must be one of none, vertical, turn, got left"),
        ("observation: [a]", "expected keys of the policy"),
        ("action: {clip: [1, -1]}", "clip is .1.0, -1.0.; expected `space` or .low, high."),
        ("action: {scale: big}", "action.scale must be a number or a list of numbers"),
        ("success: {info: a, reward: 1}", "success names info and reward; give one of"),
        ("success: {when: any}", "names no signal"),
        ("success: {info: a, when: sometimes}", "expected any or end"),
        ("max_episode_steps: 0", "max_episode_steps is 0; expected more than 0"),
        ("control_dt: -1", "control_dt is -1.0; expected more than 0"),
        ("settle: {steps: 3}", "settle needs steps and action"),
        ("start_states: {file: a.npy}", "start_states needs file and method"),
        ("a: [", "not YAML"),
        ("- a", "it holds a list; expected a mapping of names to values"),
    ],
)
def test_a_mistake_in_a_map_is_one_line(tmp_path, text, message):
    """Guards against: an option that is ignored because its name was mistyped."""
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(EnvMapError, match=message) as refused:
        EnvMap.read(tmp_path / "map.yaml")
    assert "map.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_map_is_refused(tmp_path):
    """Guards against: a mistyped file name taken for an empty map."""
    with pytest.raises(EnvMapError, match="no such file"):
        EnvMap.read(tmp_path / "none.yaml")


def test_results_are_named_after_the_environment():
    """Guards against: file names with slashes and colons."""
    assert task_name("gymnasium_robotics:FetchPush-v4") == "gymnasium_robotics-FetchPush-v4"
    assert task_name("Meta-World/MT1") == "Meta-World-MT1"
