"""Does a policy follow its instruction? Trained for some seconds on `reach`, it must touch whatever cube is named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy import load_policy
from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.rollout.actor import PolicyActor
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.tasks._cubes import COLORS
from robopolicy.sim.tasks.reach import Reach

ROOT = Path(__file__).parents[2]
WORLDS = 48
TOUCHED_NOTHING = -1


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy without memory, which learns what is asked within seconds; in processes without pytest's type checks."""
    folder = tmp_path_factory.mktemp("reach")
    robopolicy(folder, "collect", "--task", "reach", "--episodes", "150", "--out", "reach.hdf5")
    seen = ["--data.obs_keys", "[gripper, to_cube_red, to_cube_green, to_cube_blue]"]
    quick = ["--memory.kind", "none", "--data.segment", "8"]
    few = ["--data.batch_size", "16", "--max-steps", "800"]
    config = ["--config", str(ROOT / "configs/reach_lowdim.yaml"), "--data.files", "reach.hdf5"]
    robopolicy(folder, "train", *config, "--run-dir", "run", *seen, *quick, *few)
    return folder / "run"


def robopolicy(folder: Path, *words: str) -> None:
    """One command of the package, run in `folder`."""
    program = "import sys; from robopolicy.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", program, *words], cwd=folder, check=True, capture_output=True)


def first_touched(folder: Path, told: list[str]) -> np.ndarray:
    """Index of the cube that is touched first in each world, for the instructions `told`; -1 if none in time."""
    policy, env = load_policy(folder), RobotVectorEnv("reach", len(told))
    actor = PolicyActor(policy, len(told), env.control_dt, RecedingOptions())
    seeds = range(50_000, 50_000 + len(told))
    obs, _ = env.reset(seed=list(seeds))
    actor.reset(np.ones(len(told), bool), seeds)
    first = np.full(len(told), TOUCHED_NOTHING)
    for _ in range(Reach.max_episode_steps):
        obs, *_ = env.step(actor.act(obs, told)[1])
        distance = Reach().distance(env.state)
        touched = (distance < Reach.touch_m).any(-1) & (first == TOUCHED_NOTHING)
        first[touched] = distance[touched].argmin(-1)
    return first


def test_swapping_the_instructions_object_swaps_the_outcome(run_folder):
    """Guards against: a policy that ignores its instruction, and still touches the named cube in a third of all scenes."""
    torch.manual_seed(0)
    named = np.arange(WORLDS) % len(COLORS)
    for shift in range(len(COLORS)):
        asked = (named + shift) % len(COLORS)
        touched = first_touched(run_folder, [Reach.template.format(COLORS[cube]) for cube in asked])
        assert (touched == asked).mean() > 0.75, f"asked for {asked}, touched {touched}"
