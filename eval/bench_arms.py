"""The control loop on the simulated two-arm robot in real time, alone or beside a training: on time, and within limits?

    python eval/bench_arms.py [--seconds 600] [--policy RUN] [--beside "COMMAND"] [--json FILE]

Drives both arms of `handover` at 50 Hz with commands at 500 Hz, from a 2x256 LSTM head in the policy's thread whose actions
swing all joints and both grippers (or from the policy of --policy), and checks every command that was sent against every
limit. --beside runs a shell command meanwhile, such as a training, on the last core; the loop, the policy and the physics
have the first one to themselves.
"""

import argparse
import os
import shlex
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_control import HeadStream, Watched, checked
from bench_table import show

from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import ThreadedInference
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.stream import PolicyStream, Stream, qpos_in_action_columns
from robopolicy.control.targets import action_at
from robopolicy.sim.robot import ProcessOptions
from robopolicy.sim.scene import VIPERX_PAIR
from robopolicy.types import Observation

CHUNK = 20
SWING_RAD = 0.25
"""How far each joint swings to either side of home [rad]."""


class Swinging(HeadStream):
    """Joints that swing around home, each at a frequency of its own, and grippers that open and close."""

    def __init__(self) -> None:
        super().__init__(VIPERX_PAIR.actions, CHUNK)

    def motion(self, steps: np.ndarray) -> np.ndarray:
        """See `HeadStream`; the first row is home."""
        profile, rows = VIPERX_PAIR.profile, []
        for time_s in steps * VIPERX_PAIR.control_dt:
            swing = SWING_RAD * np.sin(2 * np.pi * (0.1 + 0.02 * np.arange(profile.joints)) * time_s)
            openings_m = profile.openings_m * (0.5 + 0.4 * np.sin(np.array([0.5, 0.8]) * time_s))
            rows.append(action_at(profile, VIPERX_PAIR.actions, profile.home_rad + swing, openings_m))
        return np.stack(rows)


def main() -> None:
    """Drive, check, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the robot is driven")
    parser.add_argument("--command-hz", type=float, default=500.0, help="commands a second")
    parser.add_argument(
        "--policy", help="run folder of an ACT/ALOHA policy; default: a head of random weights that swings"
    )
    parser.add_argument("--beside", help="command to run meanwhile on the last core")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        if options.beside:
            words = ["taskset", "--cpu-list", str(cores[-1]), *shlex.split(options.beside)]
            beside = stack.enter_context(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            stack.callback(beside.terminate)
            os.sched_setaffinity(0, cores[:1])
        rows, bars = driven(options.seconds, 1 / options.command_hz, options.policy)
        if options.beside and beside.poll() is not None:
            raise SystemExit(f"--beside ended with code {beside.returncode} before the run did; give it more to do")
    show(rows, bars, options.json)


def driven(seconds: float, command_dt: float, folder: str | None) -> tuple[list[dict], list[dict]]:
    """Deviation from the grids, and every command against every limit."""
    with closing(Watched("handover", command_dt, ProcessOptions(0.25, 1.0, priority=True))) as robot:
        stream: Stream = Swinging()
        adapt: tuple[Callable[[Observation], Observation], ...] = ()
        executor, spec = (
            ChunkExecutor(CHUNK, VIPERX_PAIR.control_dt, action_spec=VIPERX_PAIR.actions),
            VIPERX_PAIR.actions,
        )
        if folder is not None:
            from robopolicy import load_policy
            from robopolicy.control.execution import execution_from

            policy = load_policy(folder)
            spec = policy.spec.action
            adapt = (partial(qpos_in_action_columns, spec=spec, profile=robot.profile),)
            stream = PolicyStream(policy)
            execution = execution_from(policy.spec.execution)
            executor = ChunkExecutor(policy.spec.chunk, VIPERX_PAIR.control_dt, execution, action_spec=spec)
        inference = ThreadedInference(robot, stream, priority=True, adapt=adapt)
        loop = ControlLoop(robot, inference, executor, spec, options=LoopOptions(deadline_s=0.5, priority=True))
        loop.go_home()
        robot.sent.clear()
        loop.run(seconds)
        inference.close()
    return checked(loop, robot)


if __name__ == "__main__":
    main()
