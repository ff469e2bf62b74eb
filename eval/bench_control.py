"""The control loop on the simulated robot in real time: is it on time, within limits, and does it stop?

    python eval/bench_control.py [--seconds 600] [--policy RUN] [--json FILE]

Part one drives the arm of `lift` at 20 Hz, with commands at 1 kHz, from a 2x256 LSTM head in the policy's thread (or from
the trained policy of --policy), and checks every command that was sent. Part two puts the policy behind a server of its
own and, in the middle of a motion, kills the server, freezes it, or drops the connection. Peer: the loop that most
repositories have, which computes and then sleeps for one period.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_table import bar, show

from robopolicy.client import PolicyClient
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import ThreadedInference
from robopolicy.control.kinematics import pose_and_jacobian
from robopolicy.control.limits import outside_workspace
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.statistics import percentiles_ms
from robopolicy.control.stream import PolicyStream, ServedStream, Stream
from robopolicy.control.timing import request_realtime
from robopolicy.sim.robot import ProcessOptions, SimRobot
from robopolicy.sim.stepped import WorldOptions
from robopolicy.types import ActionSpec, ArraySpec, Command, Observation, Prediction

CONTROL_DT = 0.05
CHUNK = 8
DEADLINE_S = 0.25
SPEC = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=1 / CONTROL_DT)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the robot is driven")
    parser.add_argument("--command-hz", type=float, default=1000.0, help="commands a second")
    parser.add_argument(
        "--policy", help="run folder of a policy for lift; default: a head of random weights, made to circle"
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        serve_child()
        return
    rows, bars = on_time(options.seconds, 1 / options.command_hz, options.policy)
    rows.append(naive_sleep(min(options.seconds, 20.0)))
    for fault in ("kill", "freeze", "drop"):
        fault_rows, fault_bars = stops(fault, 1 / options.command_hz)
        rows += fault_rows
        bars += fault_bars
    show(rows, bars, options.json)


# -- policies ----------------------------------------------------------------------------------------------------------


class HeadStream:
    """Steps a real 2x256 LSTM head, for its time; a subclass answers with a motion."""

    gripper_logit = None

    def __init__(self, spec: ActionSpec, chunk: int) -> None:
        from robopolicy import PolicyHead

        self.chunk = chunk
        self.head = PolicyHead(64, spec, window=8, chunk=chunk, layers=2, hidden=256, widths=(256, 128)).eval()
        self.reset()

    def __call__(self, observation: Observation | Mapping[str, Any], prefix: Any = None) -> np.ndarray:
        """Actions (K, width)."""
        with torch.inference_mode():
            _, self.state = self.head.step(torch.zeros(4, 64), self.state)
        self.steps += 1
        return self.motion(self.steps - 1 + np.arange(self.chunk)).astype(np.float32)

    def motion(self, steps: np.ndarray) -> np.ndarray:
        """The actions (K, width) of control steps (K,)."""
        raise NotImplementedError

    def reset(self) -> None:
        """Start the motion again."""
        self.state, self.steps = self.head.initial_state(()), 0


class Circling(HeadStream):
    """A circle in the horizontal plane."""

    def __init__(self) -> None:
        super().__init__(SPEC, CHUNK)

    def motion(self, steps: np.ndarray) -> np.ndarray:
        """See `HeadStream`."""
        rest, down = np.zeros((CHUNK, 4)), -np.ones((CHUNK, 1))
        return np.column_stack([0.3 * np.cos(0.1 * steps), 0.3 * np.sin(0.1 * steps), rest, down])


@dataclass(frozen=True)
class Circles:
    """One circle for each episode of a batch."""

    each: tuple[Circling, ...]

    @staticmethod
    def concat(states: Sequence["Circles"]) -> "Circles":
        """End to end."""
        return Circles(tuple(circle for state in states for circle in state.each))

    def split(self, sizes: int) -> list["Circles"]:
        """Parts of `sizes` episodes."""
        return [Circles(self.each[start : start + sizes]) for start in range(0, len(self.each), sizes)]


class ServedCircling:
    """The same for a server."""

    chunk = CHUNK

    def initial_state(self, batch: int) -> Circles:
        """A circle for each connection."""
        return Circles(tuple(Circling() for _ in range(batch)))

    def predict(self, observation: Mapping[str, Any], state: Circles) -> tuple[Prediction, Circles]:
        """Actions (batch, K, 7)."""
        return Prediction(np.stack([circle(observation) for circle in state.each])), state


def trained(folder: str) -> tuple[Stream, ChunkExecutor, ActionSpec]:
    """A policy of a run folder."""
    from robopolicy import load_policy

    policy = load_policy(folder)
    spec = policy.action_spec
    executor = ChunkExecutor(policy.chunk, CONTROL_DT, policy.config.execution, action_spec=spec)
    return PolicyStream(policy, frame_stride=policy.config.data.frame_stride), executor, spec


# -- on time, within limits --------------------------------------------------------------------------------------------


class Watched(SimRobot):
    """The simulated robot of a task, which keeps the commands of at most `seconds`."""

    def __init__(self, task: str, command_dt: float, process: ProcessOptions, seconds: float) -> None:
        super().__init__(WorldOptions(task, command_dt=command_dt), process)
        # Written before the run: memory that grows during it costs page faults in the control thread.
        self._rows = np.full((int(seconds / command_dt), 1 + self.profile.joints), np.nan)
        self._count = 0

    @property
    def sent(self) -> np.ndarray:
        """(commands, 1 + joints) stamps [s] and positions [rad]."""
        return self._rows[: self._count]

    def forget(self) -> None:
        """Forget the commands sent so far."""
        self._count = 0

    def command(self, command: Command) -> None:
        """Send and keep."""
        super().command(command)
        row = self._rows[self._count]
        row[0], row[1:] = command.stamp_s, command.joint_position_rad
        self._count += 1


def on_time(seconds: float, command_dt: float, folder: str | None) -> tuple[list[dict], list[dict]]:
    """Deviation from the grid at both rates, and every command against every limit."""
    executor, stream, spec = ChunkExecutor(CHUNK, CONTROL_DT, action_spec=SPEC), None, SPEC
    if folder is not None:
        stream, executor, spec = trained(folder)
    with closing(Watched("lift", command_dt, ProcessOptions(priority=True), seconds + 60.0)) as robot:
        inference = ThreadedInference(robot, stream or Circling(), priority=True)
        loop = ControlLoop(robot, inference, executor, spec, options=LoopOptions(priority=True))
        loop.run(seconds)
    rows, bars = checked(loop, robot)
    delay = loop.statistics.to_dict()["delay_ms"]
    return rows, [
        bar("p99 deviation from the 20 Hz grid [ms]", delay["p99"], 2.0, "lower"),
        bar("control steps a second", loop.statistics.rate_hz, 19.99),
        *bars,
    ]


def checked(loop: ControlLoop, robot: Watched) -> tuple[list[dict], list[dict]]:
    """Rows of a run that has ended, and a bar for each limit: was it on time, and every command within it?"""
    if loop.stopped:
        raise SystemExit(f"the loop stopped: {loop.stopped}")
    figures, worst = loop.statistics.to_dict(), worst_shares(robot)
    counts = {
        "commands": figures["commands"],
        "command ticks overrun": figures["overruns"],
        "control steps missed": figures["missed_steps"],
        "frames the policy missed": figures["missed_frames"],
        **{f"limited: {kind}": count for kind, count in figures["limited"].items()},
    }
    shares = {f"largest {name}, share of its limit": share for name, share in worst.items()}
    rows = [
        timing_row(f"step behind the {1 / robot.control_dt:.0f} Hz grid", figures["delay_ms"]),
        timing_row(f"command behind the {1 / robot.command_dt:.0f} Hz grid", figures["command_delay_ms"]),
        timing_row("observation to chunk", figures["latency_ms"]),
        *({"measured": name, "count": count} for name, count in {**counts, **shares}.items()),
    ]
    return rows, [bar(name, share, 1.0 + 1e-6, "lower") for name, share in shares.items()]


def worst_shares(robot: Watched) -> dict[str, float]:
    """The largest divided differences over the commands sent, and of each arm its tool's speed, as shares of the limits."""
    commands, profile, worst = robot.sent, robot.profile, {}
    # Stamps on the grid: one is rounded to 4e-12 s, which the jerk would show.
    stamps = robot.command_dt * np.round((commands[:, 0] - commands[0, 0]) / robot.command_dt)
    positions = rates = commands[:, 1:]
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
        name = f"{side} " if side else ""
        worst[f"{name}tool speed"] = float(speed.max() / (arm.speed_m_s or np.inf))
        worst[f"{name}workspace (1 + metres outside)"] = 1.0 + max(float(outside_workspace(arm, tool).max()), 0.0)
    return worst


def naive_sleep(seconds: float) -> dict[str, Any]:
    """The peer: the same thinking, then a sleep of one period."""
    stream, late, began_s, steps = Circling(), [], time.monotonic(), 0
    while time.monotonic() - began_s < seconds:
        late.append(time.monotonic() - (began_s + steps * CONTROL_DT))
        stream({})
        steps += 1
        time.sleep(CONTROL_DT)
    rate_hz = steps / (time.monotonic() - began_s)
    return timing_row(f"peer, sleeping one period: {rate_hz:.2f} Hz, behind the grid", percentiles_ms(late))


def timing_row(measured: str, figures: Mapping[str, float]) -> dict[str, Any]:
    """Percentiles in milliseconds."""
    return {"measured": measured, **{f"{name}_ms": figures[name] for name in ("p50", "p99", "max")}}


# -- faults ------------------------------------------------------------------------------------------------------------


def stops(fault: str, command_dt: float) -> tuple[list[dict], list[dict]]:
    """The policy's server is killed, frozen or cut off while the arm moves: how soon it rests, and how."""
    with (
        server() as (process, port),
        closing(Watched("lift", command_dt, ProcessOptions(priority=True), 60.0)) as robot,
    ):
        client = PolicyClient("127.0.0.1", port, timeout_s=5.0)
        inference = ThreadedInference(robot, ServedStream(client), priority=True)
        executor = ChunkExecutor(CHUNK, CONTROL_DT, action_spec=SPEC)
        loop = ControlLoop(robot, inference, executor, SPEC, options=LoopOptions(deadline_s=DEADLINE_S, priority=True))
        happened_s: list[float] = []

        def strike() -> bool:
            if not happened_s and time.monotonic() - began_s > 3.0:
                happened_s.append(time.monotonic())
                if fault == "drop":
                    client._connection.socket.shutdown(2)  # type: ignore[union-attr]
                else:
                    os.kill(process.pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            return False

        began_s = time.monotonic()
        statistics = loop.run(20.0, strike)
        noticed_ms = 1e3 * (robot.sent[-1][0] - statistics.stop_s[-1] - happened_s[0])
        worst = worst_shares(robot)
    if not loop.stopped:
        raise SystemExit(f"{fault}: the loop did not stop")
    rows = [
        {"measured": f"{fault}: {loop.stopped}"[:70], "count": 1},
        {"measured": f"{fault}: from the fault to the brake [ms]", "count": noticed_ms},
        {"measured": f"{fault}: from the brake to rest [ms]", "count": 1e3 * statistics.stop_s[-1]},
    ]
    derivatives = max(worst[name] for name in ("velocity", "acceleration", "jerk"))
    return rows, [
        bar(f"{fault}: brake begins after [ms]", noticed_ms, 1e3 * DEADLINE_S, "lower"),
        bar(f"{fault}: velocity, acceleration, jerk, share of their limits", derivatives, 1.0 + 1e-6, "lower"),
    ]


@contextmanager
def server() -> Iterator[tuple[subprocess.Popen, int]]:
    """A policy server in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--child"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def serve_child() -> None:
    """Serve `ServedCircling` and print the port."""
    from robopolicy.control.server import PolicyServer
    from robopolicy.control.serving.mapping import KeyMapping
    from robopolicy.control.serving.protocol import ObservationReader
    from robopolicy.types import PolicySpec

    request_realtime(5)
    spec = PolicySpec({"qpos": ArraySpec((7,))}, SPEC, CHUNK, window=8, control_dt=CONTROL_DT)
    reader = ObservationReader(spec, KeyMapping.read("native"))
    serving = PolicyServer(ServedCircling(), reader, port=0)
    asyncio.run(serving.run(lambda host, port: print(port, flush=True)))


if __name__ == "__main__":
    main()
