"""The LeRobot plug-in in an environment that holds the real LeRobot: its own scripts train, resume and evaluate.

Needs a package index. `ROBOPOLICY_LEROBOT_PYTHON` names an interpreter that has LeRobot, to build no other.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from robopolicy import ActionSpec, Demo, DemoWriter, load_policy
from robopolicy.demos.formats import open_demos
from robopolicy.demos.formats.lerobot import LeRobotFormat, LeRobotOptions

ROOT = Path(__file__).parents[2]
LEROBOT = "lerobot==0.4.4"
"""The newest for Python 3.11. It pins torch < 2.11; installed without its dependencies, it runs with the tested torch."""
DEPENDENCIES = (
    *("accelerate>=1.10,<2", "av>=15,<16", "datasets>=4,<5", "deepdiff>=7.0.1,<9", "diffusers<0.36", "draccus==0.10.0"),
    *("gym-pusht", "huggingface-hub>=0.34.2,<0.36", "imageio[ffmpeg]", "jsonlines", "opencv-python-headless<4.13"),
    *("packaging<26", "pymunk<7", "pynput", "pyserial", "rerun-sdk>=0.24,<0.27", "setuptools<81", "termcolor"),
    *("wandb>=0.24,<0.25", "torchvision", "beartype", "pytest", "pytest-timeout"),
)
OPERATORS = """import torch

for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""For torchvision's wheel of a plain index, whose operators need CUDA: what it asks for when it is imported."""
OPTIONS = {
    "encoder.kind": "keys",
    "memory.window": 4,
    "memory.hidden": 16,
    "action_head.chunk": 4,
    "execution.replan_every": 2,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter with LeRobot, the plug-in and this checkout."""
    if given := os.environ.get("ROBOPOLICY_LEROBOT_PYTHON"):
        return Path(given)
    if sys.version_info[:2] != (3, 11):
        pytest.skip(f"{LEROBOT} and its dependencies were tried with Python 3.11")
    folder = tmp_path_factory.mktemp("lerobot") / "env"
    venv.create(folder, with_pip=True)
    made = folder / "bin" / "python"
    (torch_pin,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    steps = ([torch_pin], ["--no-deps", LEROBOT], [torch_pin, *DEPENDENCIES], [str(ROOT)])
    for wanted in (*steps, ["--no-deps", str(ROOT / "integrations" / "lerobot")]):
        done = subprocess.run([made, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no environment for LeRobot: {done.stderr.strip().splitlines()[-1]}")
    if subprocess.run([made, "-c", "import torchvision"], capture_output=True).returncode:
        site = subprocess.run(
            [made, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
        )
        (Path(site.stdout.strip()) / "sitecustomize.py").write_text(OPERATORS)
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A LeRobot data set with the features of gym-pusht: a point on the way to a goal."""
    folder, rng = tmp_path_factory.mktemp("push"), np.random.default_rng(0)
    spec = ActionSpec(arm=2, gripper=0, kind="absolute", rate_hz=10.0)
    with DemoWriter(folder / "push.hdf5", action_spec=spec) as writer:
        for number in range(6):
            start, goal = rng.uniform(100, 400, (2, 2))
            state = (start + (goal - start) * (1 - 0.8 ** np.arange(20)[:, None])).astype(np.float32)
            actions = np.broadcast_to(goal, (20, 2)).astype(np.float32).copy()
            writer.write(Demo(f"demo_{number}", {"state": state}, actions, instruction="push the T"))
    with open_demos(folder / "push.hdf5") as source:
        LeRobotFormat(LeRobotOptions()).write(source, folder / "set", source.names)
    return folder / "set"


def lerobot(python: Path, folder: Path, script: str, *words: str) -> str:
    done = subprocess.run(
        [python.parent / f"lerobot-{script}", *words],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_lerobots_scripts_train_resume_and_evaluate_the_policy(python, dataset, tmp_path):
    """Guards against: a plug-in that LeRobot's own scripts do not find, or whose checkpoints they can't read."""
    made = "out/checkpoints/last/pretrained_model"
    lerobot(
        *(python, tmp_path, "train", "--policy.type=robopolicy", f"--policy.experiment={json.dumps(OPTIONS)}"),
        *("--policy.device=cpu", "--policy.push_to_hub=false", "--dataset.repo_id=local/push"),
        *(f"--dataset.root={dataset}", "--output_dir=out", "--steps=6", "--batch_size=4", "--num_workers=0"),
        *("--save_freq=6", "--wandb.enable=false"),
    )
    lerobot(python, tmp_path, "train", f"--config_path={made}/train_config.json", "--resume=true", "--steps=8")
    lerobot(
        *(python, tmp_path, "eval", f"--policy.path={made}", "--env.type=pusht", "--policy.device=cpu"),
        *("--env.obs_type=environment_state_agent_pos", "--env.episode_length=8", "--eval.n_episodes=2"),
        *("--eval.batch_size=2", "--eval.use_async_envs=false", "--output_dir=evaluated"),
    )
    assert json.loads((tmp_path / "evaluated" / "eval_info.json").read_text())["overall"]["n_episodes"] == 2
    assert load_policy(tmp_path / made).spec.window == 4


def test_losses_and_actions_are_ours_with_the_real_lerobot(python):
    """Guards against: equality with a stand-in of LeRobot only."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("test_lerobot.py"))]
    done = subprocess.run([python, *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


ROBOT = """from dataclasses import dataclass

from lerobot.robots import Robot, RobotConfig

from robopolicy.components import component
from robopolicy.control.robots.base import RobotContext
from robopolicy.testing.robot import CHECKS

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@RobotConfig.register_subclass("mock_arm")
@dataclass
class MockArmConfig(RobotConfig):
    port: str = ""


class MockArm(Robot):
    config_class, name = MockArmConfig, "mock_arm"
    observation_features = action_features = property(lambda self: {f"{joint}.pos": float for joint in JOINTS})
    is_connected = property(lambda self: self.connected)
    is_calibrated = property(lambda self: True)

    def __init__(self, config):
        super().__init__(config)
        self.connected, self.values = False, {f"{joint}.pos": 0.0 for joint in JOINTS} | {"gripper.pos": 30.0}

    def connect(self, calibrate=True):
        self.connected = True

    def calibrate(self): ...

    def configure(self): ...

    def get_observation(self):
        return dict(self.values)

    def send_action(self, action):
        self.values |= action
        return action

    def disconnect(self):
        self.connected = False


def main():
    found = component("robot", "lerobot")
    for check in CHECKS:
        robot = found.make(found.options(type="mock_arm"), RobotContext(control_dt=0.1))
        check(robot)
        robot.stop()
    print(len(CHECKS), "checks")
"""


def test_a_robot_of_lerobots_own_class_keeps_our_contract(python, tmp_path):
    """Guards against: `kind: lerobot` that fits a stand-in of LeRobot's Robot only."""
    (tmp_path / "mock_arm.py").write_text(ROBOT)
    done = subprocess.run(
        [python, "-c", "import mock_arm; mock_arm.main()"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "7 checks" in done.stdout
