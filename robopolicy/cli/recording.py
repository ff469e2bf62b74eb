"""What a control loop's `Recorder` may be: a demo file, the rerun viewer, or several at once."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.control.robot import Recorder, Tick
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import ActionSpec, Demo


class DemoRecorder:
    """Keeps every control step in which the policy saw and acted; `close` writes them as one demo.

    `check` opens the file and `train` can train on it. Beside the robot's observations stand `command_qpos` [rad] and
    `command_gripper` [m], the targets that were sent, and `limited`, 1 where a limit changed them; env_args names them
    as `privileged`: a policy shall not see them.

    Args:
        path: demo file; one that exists gains a demo.
        action_spec: columns of the actions.
        env_args: what the file says of the simulator; None: a real robot.
        seed: seed of the simulated episode.
    """

    def __init__(
        self,
        path: str | Path,
        action_spec: ActionSpec,
        env_args: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self.path, self.action_spec, self.seed = Path(path), action_spec, seed
        robot = {"env_name": "robopolicy run", "type": 2, "env_kwargs": {}}
        unseen = ["command_qpos", "command_gripper", "limited"]
        self.env_args = {"env_version": version("robopolicy"), "privileged": unseen, **(env_args or robot)}
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
        resume = self.path.exists()
        with DemoWriter(self.path, env_args=self.env_args, action_spec=self.action_spec, resume=resume) as writer:
            writer.write(self._demo(ticks, name=f"demo_{len(writer.names)}"))

    def _demo(self, ticks: Sequence[Tick], name: str) -> Demo:
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
            seed=self.seed,
        )


class RerunRecorder:
    """Shows every control step in the rerun viewer: pictures, low-dimensional observations, actions and commands.

    Raises:
        ImportError: rerun is not installed; the message says which extra brings it.
    """

    def __init__(self) -> None:
        try:
            import rerun
        except ImportError:
            raise ImportError("the viewer needs rerun; install robopolicy[view]") from None
        self._rerun = rerun
        rerun.init("robopolicy run", spawn=True)

    def record(self, tick: Tick) -> None:
        """Show one control step."""
        rerun = self._rerun
        rerun.set_time("time", duration=tick.t_s)
        rerun.log("command/qpos", rerun.Scalars(tick.command.joint_position_rad))
        rerun.log("limited", rerun.TextLog(", ".join(tick.limited)))
        if tick.action is not None:
            rerun.log("action", rerun.Scalars(tick.action))
        for key, value in tick.observation.obs.items() if tick.observation else ():
            picture = np.ndim(value) == 3
            rerun.log(f"obs/{key}", rerun.Image(value) if picture else rerun.Scalars(np.ravel(value)))

    def close(self) -> None:
        """The viewer stays open."""


class Recorders:
    """Several recorders as one."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self.recorders = recorders

    def record(self, tick: Tick) -> None:
        """Tell each."""
        for recorder in self.recorders:
            recorder.record(tick)

    def close(self) -> None:
        """Close each."""
        for recorder in self.recorders:
            recorder.close()
