"""A `Recorder` that keeps a run as a demo file, which `check` opens and `train` can train on."""

from importlib.metadata import version
from pathlib import Path

import numpy as np

from robopolicy.control.robot import Tick
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import ActionSpec, Demo


class DemoRecorder:
    """Keeps every control step in which the policy saw and acted; `close` writes them as one demo.

    Beside the robot's observations stand `command_qpos` [rad] and `command_gripper` [m], the targets that were sent, and
    `limited`, 1 where a limit changed them.

    Args:
        path: demo file; one that exists gains a demo.
        action_spec: columns of the actions.
        control_dt: seconds of one control step.
    """

    def __init__(self, path: str | Path, action_spec: ActionSpec, control_dt: float) -> None:
        self.path, self.action_spec, self.control_dt = Path(path), action_spec, control_dt
        self.ticks: list[Tick] = []

    def record(self, tick: Tick) -> None:
        """Take one control step."""
        if tick.observation is not None and tick.action is not None:
            self.ticks.append(tick)

    def close(self) -> None:
        """Write what was recorded; nothing where no step was."""
        ticks, self.ticks = self.ticks, []
        if not ticks:
            return
        env_args = {"env_name": "robopolicy run", "type": 2, "env_version": version("robopolicy"), "env_kwargs": {}}
        with DemoWriter(
            self.path, env_args=env_args, action_spec=self.action_spec, resume=self.path.exists()
        ) as writer:
            writer.write(self._demo(ticks, name=f"demo_{len(writer.names)}"))

    def _demo(self, ticks: list[Tick], name: str) -> Demo:
        seen = [tick.observation for tick in ticks if tick.observation is not None]
        keys = set.intersection(*(set(observation.obs) for observation in seen))
        obs = {key: np.stack([np.asarray(observation.obs[key]) for observation in seen]) for key in sorted(keys)}
        obs["command_qpos"] = np.stack([tick.command.joint_position_rad for tick in ticks]).astype(np.float32)
        obs["command_gripper"] = np.array([[tick.command.gripper_opening_m] for tick in ticks], np.float32)
        obs["limited"] = np.array([[float(bool(tick.limited))] for tick in ticks], np.float32)
        told = seen[0].instruction
        return Demo(
            name=name,
            obs=obs,
            actions=np.stack([tick.action for tick in ticks if tick.action is not None]).astype(np.float32),
            instruction=told if told is None or isinstance(told, str) else told[0],
            attributes={"control_dt": self.control_dt},
        )
