"""The maps of `eval/maps`: all are read; those of LIBERO, CALVIN and SimplerEnv run against stand-ins with the real spaces."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.spaces import Box

import robopolicy
from robopolicy.rollout.env_map import EnvMap
from robopolicy.types import ArraySpec

MAPS = Path(__file__).parents[2] / "eval" / "maps"


@pytest.mark.parametrize("path", sorted(MAPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_map_is_read(path):
    """Guards against: a map that is refused when somebody needs it."""
    assert EnvMap.read(path).success


class OffScreenRenderEnv:
    """LIBERO's environment of one task; solved by opening the gripper in the third step after the settling."""

    made: ClassVar[list["OffScreenRenderEnv"]] = []

    def __init__(self, bddl_file_name: str, camera_heights: int, camera_widths: int) -> None:
        self.file, self.shape, self.closed = bddl_file_name, (camera_heights, camera_widths, 3), False
        self.start: Any = None
        self.made.append(self)

    def seed(self, seed: int) -> None:
        """As LIBERO's."""

    def reset(self) -> dict[str, np.ndarray]:
        """As LIBERO's: the observation alone."""
        self.actions: list[list[float]] = []
        return self.observe()

    def set_init_state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """As LIBERO's."""
        self.start = state
        return self.observe()

    def step(self, action: list[float]) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """Four values; `done` means solved."""
        assert len(action) == 7
        self.actions.append(action)
        done = len(self.actions) > 12 and action[6] == -1.0
        return self.observe(), float(done), done, {}

    def observe(self) -> dict[str, np.ndarray]:
        """As robosuite names them; cameras are upside down."""
        image = np.zeros(self.shape, np.uint8)
        image[-1] = 255
        return {
            "agentview_image": image,
            "robot0_eye_in_hand_image": image,
            "robot0_eef_pos": np.zeros(3),
            "robot0_eef_quat": np.zeros(4),
            "robot0_gripper_qpos": np.zeros(2),
            "robot0_joint_pos": np.zeros(7),
        }

    def close(self) -> None:
        """As LIBERO's."""
        self.closed = True


class Benchmark:
    """A suite of ten tasks with fifty start states each."""

    def get_num_tasks(self) -> int:
        """Ten."""
        return 10

    def get_task(self, number: int) -> Any:
        """As LIBERO's named tuple."""
        return SimpleNamespace(language=f"do task {number}", problem_folder="suite", bddl_file=f"{number}.bddl")

    def get_task_init_states(self, number: int) -> np.ndarray:
        """(50, n) simulator states."""
        return np.arange(50.0)[:, None] + 100 * number


SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@pytest.mark.parametrize(("suite", "limit"), list(zip(SUITES, (220, 280, 300, 520), strict=True)))
def test_a_libero_suite_runs_task_by_task_from_its_stored_starts(stand_in, seeing, suite, limit):
    """Guards against: a suite of which one task is measured, from random starts or upside down."""
    benchmark = SimpleNamespace(get_benchmark_dict=lambda: dict.fromkeys(SUITES, Benchmark))
    stand_in("libero.libero", benchmark=benchmark, get_libero_path=lambda kind: f"/libero/{kind}")
    stand_in("libero.libero.envs", OffScreenRenderEnv=OffScreenRenderEnv)
    OffScreenRenderEnv.made.clear()
    obs = {
        "agentview_rgb": ArraySpec((128, 128, 3), "uint8"),
        "ee_pos": ArraySpec((3,)),
        "gripper_states": ArraySpec((2,)),
    }
    policy = seeing(obs, [0, 0, 0, 0, 0, 0, -1])
    result = robopolicy.evaluate(policy, f"libero_suite:{suite}", range(20), env_map=MAPS / "libero.yaml", num_envs=1)
    assert result.successes == 20
    assert result.per_instruction == {f"do task {number}": (2, 2) for number in range(10)}
    assert result.mean_steps == 3
    assert policy.seen[0]["agentview_rgb"][0, 0].min() == 255  # the right way up
    assert OffScreenRenderEnv.made[0].file == "/libero/bddl_files/suite/0.bddl"
    assert OffScreenRenderEnv.made[-1].start == [901.0]  # seed 19: task 9, its second start
    assert OffScreenRenderEnv.made[-1].actions[:10] == [[0, 0, 0, 0, 0, 0, -1]] * 10
    failing = seeing(obs, [0, 0, 0, 0, 0, 0, 1])
    result = robopolicy.evaluate(failing, f"libero_suite:{suite}", [0], env_map=MAPS / "libero.yaml")
    assert (result.successes, result.mean_steps) == (0, limit)


class PlayTable:
    """CALVIN's environment; every fourth step solves the subtask under way."""

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> dict[str, Any]:
        """As CALVIN's."""
        assert (robot_obs.shape, scene_obs.shape) == ((15,), (24,))
        self.steps = 0
        return self.get_obs()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, dict]:
        """Four values; the gripper must be -1 or 1."""
        assert action.shape == (7,)
        assert action[6] in (-1, 1)
        self.steps += 1
        return self.get_obs(), 0.0, False, self.get_info()

    def get_info(self) -> dict[str, Any]:
        """What the task oracle compares."""
        return {"steps": self.steps}

    def get_obs(self) -> dict[str, Any]:
        """Nested dicts, as CALVIN's."""
        images = {"rgb_static": np.zeros((200, 200, 3), np.uint8), "rgb_gripper": np.zeros((84, 84, 3), np.uint8)}
        return {"rgb_obs": images, "depth_obs": {}, "robot_obs": np.zeros(15), "scene_obs": np.zeros(24)}


class Oracle:
    """CALVIN's success conditions; `slow` is never solved."""

    def get_task_info_for_set(self, start: dict, end: dict, tasks: set[str]) -> set[str]:
        """The solved ones of `tasks`."""
        return tasks if end["steps"] - start["steps"] >= 4 and tasks != {"slow"} else set()


def test_calvin_counts_instructions_in_a_row_and_clears_the_memory(stand_in, seeing, monkeypatch):
    """Guards against: five in a row counted as one task, or a memory that outlives its instruction."""
    sequences = [({}, ["open", "push", "lift", "turn", "close"]), ({}, ["open", "push", "slow", "turn", "close"])]
    stand_in("hydra", utils=SimpleNamespace(instantiate=lambda conf: Oracle()))
    loaded = SimpleNamespace(load=lambda path: {name: [f"please {name}"] for _, names in sequences for name in names})
    stand_in("omegaconf", OmegaConf=loaded)
    stand_in("calvin_env.envs.play_table_env", get_env=lambda path, show_gui: PlayTable())
    stand_in("calvin_agent.evaluation.multistep_sequences", get_sequences=lambda count: sequences)
    starts = SimpleNamespace(get_env_state_for_initial_condition=lambda start: (np.zeros(15), np.zeros(24)))
    stand_in("calvin_agent.evaluation.utils", **vars(starts))
    monkeypatch.setenv("CALVIN_ROOT", "/calvin")
    monkeypatch.setenv("CALVIN_DATASET", "/data")
    obs = {"rgb_static": ArraySpec((64, 64, 3), "uint8"), "robot_obs": ArraySpec((15,))}
    policy = seeing(obs, [0, 0, 0, 0, 0, 0, 0.3])
    result = robopolicy.evaluate(policy, "calvin_chain:Chain", range(2), env_map=MAPS / "calvin.yaml", num_envs=1)
    assert (result.successes, result.figures["solved"]) == (1, 3.5)
    assert result.in_a_row == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert [outcome["steps"] for outcome in result.outcomes] == [20, 8 + 360]
    assert max(int(each["frames"][0]) for each in policy.seen[:20]) == 4
    assert [each["instruction"][0] for each in policy.seen[:5]] == ["please open"] * 4 + ["please push"]


class SimplerTask:
    """SimplerEnv's environment of one task; solved in its second step."""

    action_space = Box(-1, 1, (7,), np.float32)
    _max_episode_steps = 80

    def __init__(self, task_name: str) -> None:
        self.task_name, self.unwrapped = task_name, self

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Gymnasium's."""
        self.steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Gymnasium's."""
        self.steps += 1
        return self.observe(), 0.0, self.steps == 2, False, {"success": self.steps == 2, "episode_stats": {}}

    def get_language_instruction(self) -> str:
        """As SimplerEnv's."""
        return self.task_name.replace("google_robot_", "").replace("_", " ")

    def observe(self) -> dict[str, Any]:
        """ManiSkill 2's nested dicts."""
        camera = {"rgb": np.full((512, 640, 3), 7, np.uint8), "depth": np.zeros((512, 640, 1), np.float32)}
        return {
            "agent": {"qpos": np.zeros(11)},
            "extra": {"tcp_pose": np.zeros(7)},
            "image": {"overhead_camera": camera},
        }


def test_simpler_env_needs_a_map_only(stand_in, seeing):
    """Guards against: nested dicts, instructions by method and factories that need code."""
    stand_in("simpler_env", make=SimplerTask)
    policy = seeing({"front": ArraySpec((64, 80, 3), "uint8"), "tcp_pose": ArraySpec((7,))}, [0] * 7)
    env = "simpler_env:google_robot_pick_coke_can"
    result = robopolicy.evaluate(policy, env, range(3), env_map=MAPS / "simpler.yaml", num_envs=3)
    assert (result.successes, result.mean_steps) == (3, 2)
    assert result.per_instruction == {"pick coke can": (3, 3)}
    assert policy.seen[0]["front"].shape == (3, 64, 80, 3)


def test_gymnasiums_own_tasks_succeed_by_their_reward_threshold(seeing):
    """Guards against: tasks without a goal that can't be evaluated; a pendulum that is left alone falls."""
    policy = seeing({"state": ArraySpec((4,))}, [0])
    policy.spec = replace(policy.spec, instruction=False)
    result = robopolicy.evaluate(
        policy, "gymnasium:InvertedPendulum-v5", range(2), env_map=MAPS / "gymnasium_mujoco.yaml"
    )
    assert result.successes == 0
    assert 0 < result.figures["return"] < result.mean_steps < 950
