"""Recorders of a control loop: a demo file, the rerun viewer, or several at once.

A separate process (`record_writer`) writes the demo file, since compressing images would delay the commands. The record
also survives if the run is killed.
"""

import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.cli.record_writer import WRITTEN, framed
from robopolicy.control.robot import Recorder, StepRecord
from robopolicy.report.video import RerunViewer
from robopolicy.types import ActionSpec

logger = logging.getLogger(__name__)

UNSEEN = ["command_qpos", "command_gripper", "limited"]
"""Keys of a record that policies must not read, since they are not observations."""
OPERATED = ["intervention", "policy_action"]
"""Further such keys in a run with an operator."""


class DemoRecorder:
    """Writes every control step with an observation and an action to one demo, even if this process is killed.

    `check` and `train` read the file. In addition to the robot's observations it has the keys `command_qpos` [rad] and
    `command_gripper` [m], the targets that were sent, and `limited`, 1 where a limit changed them; env_args lists them as
    `privileged`, so that policies do not read them. With an operator there are also `intervention`, 1 where `actions` holds
    the operator's action, and `policy_action`, the policy's own action in the demos' units.

    Args:
        path: demo file; the demo is added to an existing one.
        action_spec: columns of the actions.
        env_args: describes the simulator; None: a real robot.
        seed: seed of the simulated episode.
        operated: whether the run has an operator.

    Raises:
        ValueError: the file can't be written, or its demos have a different action spec.
    """

    def __init__(
        self,
        path: str | Path,
        action_spec: ActionSpec,
        env_args: Mapping[str, Any] | None = None,
        seed: int | None = None,
        operated: bool = False,
    ) -> None:
        self.operated, self.recorded = operated, False
        described = dict(env_args or {"env_name": "robopolicy run", "type": 2, "env_kwargs": {}})
        unseen = [*UNSEEN, *(["command_base"] if action_spec.base else []), *(OPERATED if operated else ())]
        described["privileged"] = [*unseen, *described.get("privileged", [])]
        described.setdefault("env_version", version("robopolicy"))
        command = [sys.executable, "-m", "robopolicy.cli.record_writer", str(path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)  # no Ctrl-C for it
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._send({"action_spec": action_spec.to_dict(), "env_args": described, "seed": seed})
        if (answer := self._answer()) != "ready":
            self.close()
            raise ValueError(f"--record {path}: {answer or 'the recorder did not start'}")

    def record(self, step: StepRecord) -> None:
        """Send one control step to the process."""
        if step.observation is None or step.action is None:
            return
        seen, command = step.observation, step.command
        obs = {key: np.asarray(value) for key, value in seen.obs.items()}
        obs["command_qpos"] = np.asarray(command.joint_position_rad, np.float32)
        if command.gripper_opening_m.size and np.isfinite(command.gripper_opening_m).all():  # NaN: never commanded
            obs["command_gripper"] = command.gripper_opening_m.astype(np.float32)
        if command.base_velocity.size:  # of a mobile base
            obs["command_base"] = command.base_velocity.astype(np.float32)
        obs["limited"] = np.array([bool(step.limited)], np.float32)
        if self.operated:
            policy_action = step.action if step.policy_action is None else step.policy_action
            obs["intervention"] = np.array([step.intervention], np.float32)
            obs["policy_action"] = np.asarray(policy_action, np.float32)
        given = seen.instruction
        instruction = given if given is None or isinstance(given, str) else given[0]
        self._send({"obs": obs, "action": np.asarray(step.action, np.float32), "instruction": instruction})

    def close(self) -> None:
        """Wait until the demo is written and set `recorded`, or log the error; if there was no step, no demo is written."""
        with suppress(BrokenPipeError):  # the process has ended, and reported why
            self._input.close()
        answer = self._answer()
        self.recorded = answer == WRITTEN
        if answer not in ("", WRITTEN):
            logger.error("the run was not recorded: %s", answer)
        self._output.close()
        self._process.wait()

    def _send(self, message: Mapping[str, Any]) -> None:
        self._input.write(framed(message))
        self._input.flush()

    def _answer(self) -> str:
        return self._output.readline().decode().strip()


class RerunRecorder:
    """Shows every control step in the rerun viewer: images, low-dimensional observations, actions and commands."""

    def __init__(self) -> None:
        self._viewer = RerunViewer("robopolicy run")

    def record(self, step: StepRecord) -> None:
        """Show one control step."""
        values = {"command/qpos": step.command.joint_position_rad, "limited": ", ".join(step.limited)}
        values |= {} if step.action is None else {"action": step.action}
        seen = step.observation.obs if step.observation else {}
        self._viewer.show(step.t_s, values | {f"obs/{key}": value for key, value in seen.items()})

    def close(self) -> None:
        """Do nothing; the viewer stays open."""


class Recorders:
    """Several recorders, in a separate thread, so that a slow or failing recorder does not affect the control loop."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self.recorders = list(recorders)
        self._steps: queue.SimpleQueue[StepRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._pass_on, name="recorder", daemon=True)
        self._thread.start()

    def record(self, step: StepRecord) -> None:
        """Queue the control step for each recorder."""
        self._steps.put(step)

    def close(self) -> None:
        """Pass the remaining steps to each recorder, and close it."""
        self._steps.put(None)
        self._thread.join()
        for recorder in self.recorders:
            recorder.close()

    def _pass_on(self) -> None:
        working = list(self.recorders)
        while (step := self._steps.get()) is not None:
            for recorder in list(working):
                try:
                    recorder.record(step)
                except Exception as error:
                    logger.error("recording stopped: %s: %s", type(error).__name__, error)
                    working.remove(recorder)
