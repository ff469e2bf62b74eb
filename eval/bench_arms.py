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
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_control import timing_row
from bench_table import bar, show

from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import ThreadedInference
from robopolicy.control.kinematics import pose_and_jacobian
from robopolicy.control.limits import outside_workspace
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.profile import RobotProfile
from robopolicy.control.stream import PolicyStream, Stream, qpos_in_action_columns
from robopolicy.control.targets import action_at
from robopolicy.sim.robot import ProcessOptions, SimRobot
from robopolicy.sim.scene import VIPERX_PAIR
from robopolicy.sim.stepped import WorldOptions
from robopolicy.types import Command, Observation

CHUNK = 20
SWING_RAD = 0.25
"""How far each joint swings to either side of home [rad]."""


class Swinging:
    """Steps a real 2x256 LSTM head, for its time, and answers with joints that swing, each at a frequency of its own."""

    gripper_logit = None

    def __init__(self) -> None:
        from robopolicy import PolicyHead

        self.head = PolicyHead(
            64, VIPERX_PAIR.actions, window=8, chunk=CHUNK, layers=2, hidden=256, widths=(256, 128)
        ).eval()
        self.reset()

    def __call__(self, observation: Observation | Mapping[str, Any], prefix: Any = None) -> np.ndarray:
        """Actions (K, 14)."""
        with torch.inference_mode():
            _, self.state = self.head.step(torch.zeros(4, 64), self.state)
        times_s = (self.steps + np.arange(CHUNK)) * VIPERX_PAIR.control_dt
        self.steps += 1
        return np.stack([self.row(time_s) for time_s in times_s]).astype(np.float32)

    def row(self, time_s: float) -> np.ndarray:
        """The action at a time [s]; the first is home."""
        profile, joints = VIPERX_PAIR.profile, VIPERX_PAIR.profile.joints
        swing = SWING_RAD * np.sin(2 * np.pi * (0.1 + 0.02 * np.arange(joints)) * time_s)
        openings_m = profile.openings_m * (0.5 + 0.4 * np.sin(np.array([0.5, 0.8]) * time_s))
        return action_at(profile, VIPERX_PAIR.actions, profile.home_rad + swing, openings_m)

    def reset(self) -> None:
        """Start at home."""
        self.state, self.steps = self.head.initial_state(()), 0


class Watched(SimRobot):
    """Keeps every command."""

    def __init__(self, command_dt: float) -> None:
        world = WorldOptions("handover", command_dt=command_dt)
        super().__init__(world, ProcessOptions(0.25, 1.0, priority=True))
        self.sent: list[tuple[float, ...]] = []

    def command(self, command: Command) -> None:
        """Send and keep."""
        super().command(command)
        self.sent.append((command.stamp_s, *command.joint_position_rad))


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
    with closing(Watched(command_dt)) as robot:
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
        statistics = loop.run(seconds)
        inference.close()
        commands = np.array(robot.sent)
    if loop.stopped:
        raise SystemExit(f"the loop stopped: {loop.stopped}")
    ticks = np.round(
        (commands[:, 0] - commands[0, 0]) / command_dt
    )  # a stamp is rounded to 4e-12 s, which jerk would show
    worst = worst_shares(robot.profile, command_dt * ticks, commands[:, 1:])
    figures = statistics.to_dict()
    rows = [
        timing_row("step behind the 50 Hz grid", figures["deviation_ms"]),
        timing_row(f"command behind the {1 / command_dt:.0f} Hz grid", figures["command_deviation_ms"]),
        timing_row("observation to chunk", figures["latency_ms"]),
        {"measured": "commands", "count": figures["commands"]},
        {"measured": "command ticks overrun", "count": figures["overruns"]},
        {"measured": "control steps missed", "count": figures["missed_steps"]},
        {"measured": "frames the policy missed", "count": figures["missed_frames"]},
        *({"measured": f"limited: {kind}", "count": count} for kind, count in figures["limited"].items()),
        *({"measured": f"largest {name}, share of its limit", "count": share} for name, share in worst.items()),
    ]
    return rows, [
        bar(f"largest {name}, share of its limit", share, 1.0 + 1e-6, "lower") for name, share in worst.items()
    ]


def worst_shares(profile: RobotProfile, stamps: np.ndarray, positions: np.ndarray) -> dict[str, float]:
    """The largest divided differences over the commands' own stamps, and of each arm its tool's speed, as shares."""
    worst, rates = {}, positions
    middle = (np.asarray(profile.position_lower_rad) + profile.position_upper_rad) / 2
    worst["position"] = float((np.abs(positions - middle) / (profile.position_upper_rad - middle)).max())
    limits = {
        "velocity": profile.velocity_rad_s,
        "acceleration": profile.acceleration_rad_s2,
        "jerk": profile.jerk_rad_s3,
    }
    for order, (name, limit) in enumerate(limits.items(), start=1):
        rates = np.diff(rates, axis=0) / ((stamps[order:] - stamps[:-order]) / order)[:, None]
        worst[name] = float((np.abs(rates) / limit).max())
    for side, arm, joints, _ in profile.parts:
        assert arm.arm is not None
        parts = np.array_split(positions[:, joints], 100)
        tool = np.concatenate([pose_and_jacobian(arm.arm, part)[0] for part in parts if len(part)])
        speed = np.linalg.norm(np.diff(tool, axis=0), axis=1) / np.diff(stamps)
        worst[f"{side} tool speed"] = float(speed.max() / (arm.speed_m_s or np.inf))
        worst[f"{side} workspace (1 + metres outside)"] = 1.0 + max(float(outside_workspace(arm, tool).max()), 0.0)
    return worst


if __name__ == "__main__":
    main()
