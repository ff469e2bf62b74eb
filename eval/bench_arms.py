"""The control loop on the simulated two-arm robot in real time, alone or beside a training: on time, and within limits?

    python eval/bench_arms.py [--seconds 600] [--policy RUN] [--beside "COMMAND"] [--json FILE]

Drives both arms of `handover` at 50 Hz with commands at 500 Hz, from a 2x256 LSTM head in the policy's thread whose actions
swing all joints and both grippers (or from the policy of --policy), and checks every command that was sent against every
limit. --beside runs a shell command meanwhile, such as a training, on the last core; the loop, the policy and the physics
have the first one to themselves.

A loop that only waits, at the same rate and with a higher priority, runs in a process of its own: ticks that it misses are
the machine's (a virtual machine's processors are taken away for milliseconds), whatever the control loop does.
"""

import argparse
import multiprocessing
import os
import shlex
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_control import HeadStream, Watched, checked
from bench_table import bar, show

from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import ThreadedInference
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.stream import PolicyStream, Stream, qpos_in_action_columns
from robopolicy.control.targets import action_at
from robopolicy.control.timing import FixedGrid, SystemClock, request_realtime
from robopolicy.sim.robot import ProcessOptions
from robopolicy.sim.scene import VIPERX_PAIR
from robopolicy.types import Observation

CHUNK = 20
EMPTY_PRIORITY = 40
"""Real-time priority of the loop that only waits: above the physics', the control loop's and the policy's."""
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
        if not options.beside:
            counts: dict[str, Any] = {row["measured"]: row.get("count") for row in rows}
            bars += [bar(name, counts[name], 0, "lower") for name in ("command ticks overrun", "control steps missed")]
        if options.beside and beside.poll() is not None:
            raise SystemExit(f"--beside ended with code {beside.returncode} before the run did; give it more to do")
    show(rows, bars, options.json)


def driven(seconds: float, command_dt: float, folder: str | None) -> tuple[list[dict], list[dict]]:
    """Deviation from the grids, and every command against every limit."""
    process = ProcessOptions(0.25, 1.0, priority=True)
    with closing(Watched("handover", command_dt, process, seconds + 60.0)) as robot:
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
        robot.forget()
        theirs, ours = multiprocessing.Pipe()
        empty = multiprocessing.get_context("spawn").Process(target=empty_loop, args=(theirs, command_dt), daemon=True)
        empty.start()
        ours.recv()  # it has begun
        loop.run(seconds)
        ours.send("end")
        missed = ours.recv()
        inference.close()
    rows, bars = checked(loop, robot)
    return [*rows, *gap_rows(robot.sent[:, 0], missed, command_dt)], bars


def empty_loop(pipe: Connection, period_s: float) -> None:
    """Wait for every tick of a grid until a message comes; then send the missed ones: (time of the next [s], how many)."""
    request_realtime(EMPTY_PRIORITY)
    pipe.send("begun")
    grid, missed = FixedGrid(SystemClock(), period_s), []
    while not pipe.poll():
        if (passed := grid.wait()) > 1:
            missed.append((grid.t_s, passed - 1))
    pipe.send(missed)


def gap_rows(stamps_s: np.ndarray, missed: list[tuple[float, int]], period_s: float) -> list[dict]:
    """How many gaps the commands have, and how many of them while the empty loop had one too."""
    ends_s = stamps_s[1:][np.diff(stamps_s) > 1.5 * period_s]
    shared = [end_s for end_s in ends_s if any(abs(end_s - t_s) < (2 + count) * period_s for t_s, count in missed)]
    counts = {
        "gaps in the commands": len(ends_s),
        "of these, while the empty loop had one": len(shared),
        "empty loop beside: ticks overrun": sum(count for _, count in missed),
        "empty loop beside: gaps": len(missed),
    }
    return [{"measured": name, "count": count} for name, count in counts.items()]


if __name__ == "__main__":
    main()
