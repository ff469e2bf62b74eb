"""What a control loop's recorder writes: a demo file that `check` opens and `train` can train on, or rerun's viewer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.control.robot import Recorder, Tick
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import ActionSpec, Demo


class DemoRecorder:
    """Writes one run as one demo of a file in the native layout.

    The demo's rows are the control steps in which the policy saw something and an action was executed; how many others
    there were, and what was limited, stands in the demo's attributes. It is written on `close`.

    Args:
        path: the file; a run is added to one that exists.
        action_spec: columns of the actions.
        env_args: the simulator's task, where there is one.
        seed: of the simulated episode.
    """

    def __init__(
        self,
        path: str | Path,
        action_spec: ActionSpec,
        env_args: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self.path, self.seed = Path(path), seed
        self._writer = DemoWriter(self.path, action_spec=action_spec, env_args=env_args, resume=self.path.exists())
        self._ticks: list[Tick] = []
        self._left_out = 0

    def record(self, tick: Tick) -> None:
        """Keep one control step."""
        if tick.observation is None or tick.action is None:
            self._left_out += 1
        else:
            self._ticks.append(tick)

    def close(self) -> None:
        """Write the demo, unless nothing was done."""
        try:
            if self._ticks:
                self._writer.write(self._demo())
        finally:
            self._ticks = []
            self._writer.close()

    def _demo(self) -> Demo:
        observations = [tick.observation for tick in self._ticks if tick.observation is not None]
        told = observations[0].instruction
        limited = [kind for tick in self._ticks for kind in tick.limited]
        return Demo(
            name="demo_0",
            obs={key: np.stack([np.asarray(seen.obs[key]) for seen in observations]) for key in observations[0].obs},
            actions=np.stack([tick.action for tick in self._ticks if tick.action is not None]),
            instruction=told if isinstance(told, str) else None,
            dones=np.arange(len(observations)) == len(observations) - 1,
            seed=self.seed,
            attributes={
                "steps_left_out": self._left_out,
                **{f"limited_{kind}": limited.count(kind) for kind in sorted(set(limited))},
            },
        )


class RerunRecorder:
    """Shows every control step in the rerun viewer as it happens."""

    def __init__(self, name: str = "robopolicy run") -> None:
        try:
            import rerun
        except ImportError:
            raise ImportError("the viewer needs rerun; install robopolicy[view]") from None
        self._rerun: Any = rerun
        rerun.init(name, spawn=True)

    def record(self, tick: Tick) -> None:
        """Log one control step."""
        rerun = self._rerun
        rerun.set_time("time", duration=tick.t_s)
        rerun.log("command/joints", rerun.Scalars(tick.command.joint_position_rad))
        rerun.log("command/gripper", rerun.Scalars([tick.command.gripper_opening_m]))
        rerun.log("limited", rerun.Scalars([len(tick.limited)]))
        if tick.action is not None:
            rerun.log("action", rerun.Scalars(tick.action))
        for key, value in (tick.observation.obs if tick.observation is not None else {}).items():
            picture = np.ndim(value) == 3
            rerun.log(f"obs/{key}", rerun.Image(value) if picture else rerun.Scalars(np.ravel(value)))

    def close(self) -> None:
        """The viewer stays open."""


class Recorders:
    """Several recorders as one."""

    def __init__(self, each: Sequence[Recorder]) -> None:
        self.each = tuple(each)

    def record(self, tick: Tick) -> None:
        """Tell each."""
        for recorder in self.each:
            recorder.record(tick)

    def close(self) -> None:
        """Close each."""
        for recorder in self.each:
            recorder.close()
