"""The server's overhead beyond inference, beside openpi's; and 64 robots at 20 Hz on one server.

    python eval/bench_serve.py [--peer-python peer/bin/python] [--json FILE]

The peer is openpi's own client against a server that does what openpi's does (eval/openpi_peer.py says how to make its
environment). Everything runs on loopback; server and clients are processes of their own, and the systems take turns.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_table import bar, show
from websockets.asyncio.client import connect

from robopolicy.client import PolicyClient, pack, unpack

HERE = Path(__file__).parent
WITHOUT_PEER_MS = 1.5
"""Goal for the median where openpi's client can't be had [ms]."""
PERIOD_S = 0.05


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with openpi-client")
    parser.add_argument("--calls", type=int, default=300, help="calls in each turn")
    parser.add_argument("--turns", type=int, default=4, help="turns of each system")
    parser.add_argument("--clients", type=int, default=64, help="robots at once")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long they run")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--child", choices=["images", "low-dim", "time"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "time":
        time_calls(options.port, options.calls)
    elif options.child:
        serve_child(options.child)
    else:
        rows, bars = overhead(options.peer_python, options.calls, options.turns)
        more_rows, more_bars = many_robots(options.clients, options.seconds)
        show(rows + more_rows, bars + more_bars, options.json)


# -- overhead ----------------------------------------------------------------------------------------------------------


def overhead(peer_python: str | None, calls: int, turns: int) -> tuple[list[dict], list[dict]]:
    """Round trip less inference, two 224 x 224 images, one client."""
    ours: list[float] = []
    peers: list[float] = []
    with child(sys.executable, __file__, "--child", "images") as port:
        timer = [sys.executable, __file__, "--child", "time", "--calls", str(calls), "--port", str(port)]
        if peer_python is None:
            for _ in range(turns):
                ours += warm(timer)
        else:
            with child(peer_python, "-I", str(HERE / "openpi_peer.py"), "serve") as peer_port:
                peer_timer = [peer_python, "-I", str(HERE / "openpi_peer.py"), "time", str(peer_port), str(calls)]
                for _ in range(turns):
                    ours += warm(timer)
                    peers += warm(peer_timer)
    rows = [row("overhead, two 224x224 images", "robopolicy", ours)]
    if not peers:
        return rows, [bar("overhead of the server, median [ms]", np.median(ours), WITHOUT_PEER_MS, "lower")]
    rows.append(row("overhead, two 224x224 images", "openpi client, openpi-like server", peers))
    return rows, [
        bar("overhead, median: times openpi's", np.median(ours) / np.median(peers), 1.0, "lower"),
        bar("overhead, p99: times openpi's", np.quantile(ours, 0.99) / np.quantile(peers, 0.99), 1.0, "lower"),
    ]


def warm(command: list[str]) -> list[float]:
    """What a timing process measured, without its first tenth."""
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(result.stdout)
    return figures[len(figures) // 10 :]


def images(seed: int) -> dict[str, Any]:
    """Two 224 x 224 images, a state and a prompt, as the peer sends them."""
    rng = np.random.default_rng(seed)
    return {
        "front": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "state": rng.normal(size=8).astype(np.float32),
        "prompt": "lift the red cube",
    }


def time_calls(port: int, calls: int) -> None:
    """Our client's round trips less the inference that the server reports [ms], as JSON."""
    observation = images(0)
    figures = []
    with PolicyClient("127.0.0.1", port) as client:
        for _ in range(calls):
            began = time.perf_counter()
            answer = client.infer(observation)
            figures.append((time.perf_counter() - began) * 1e3 - answer["policy_timing"]["infer_ms"])
    print(json.dumps(figures))


# -- many robots -------------------------------------------------------------------------------------------------------


def many_robots(clients: int, seconds: float) -> tuple[list[dict], list[dict]]:
    """Robots that each ask every 50 ms, whatever became of the last answer."""
    with child(sys.executable, __file__, "--child", "low-dim") as port:
        latencies_ms, dropped = asyncio.run(load(port, clients, seconds))
    name = f"{clients} robots at 20 Hz, 2x256 LSTM, {seconds:g} s"
    late = int((np.asarray(latencies_ms) > PERIOD_S * 1e3).sum())
    rows = [row(name, "robopolicy", latencies_ms) | {"calls": len(latencies_ms), "late": late, "dropped": dropped}]
    return rows, [
        bar(f"{name}: calls dropped", dropped, 0.0, "lower"),
        bar(f"{name}: p99 of a call [ms]", np.quantile(latencies_ms, 0.99), PERIOD_S * 1e3, "lower"),
    ]


async def load(
    port: int, clients: int, seconds: float, headers: Mapping[str, str] | None = None
) -> tuple[list[float], int]:
    """Latencies [ms] of all calls, and how many were never answered or found the robot still waiting."""
    start = time.monotonic() + 1.0
    robots = [robot(port, start + PERIOD_S * place / clients, seconds, place, headers) for place in range(clients)]
    outcomes = await asyncio.gather(*robots)
    return [latency for latencies, _ in outcomes for latency in latencies], sum(dropped for _, dropped in outcomes)


async def robot(
    port: int, start: float, seconds: float, seed: int, headers: Mapping[str, str] | None
) -> tuple[list[float], int]:
    """One robot on its own grid of 50 ms; a tick that comes while it still waits is a dropped call."""
    rng = np.random.default_rng(seed)
    ticks = round(seconds / PERIOD_S)
    latencies_ms, dropped = [], 0
    async with connect(f"ws://127.0.0.1:{port}", compression=None, additional_headers=headers) as connection:
        await connection.recv()
        tick = 0
        while tick < ticks:
            due = start + tick * PERIOD_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            observation = {"ee_pose": rng.normal(size=7), "gripper": rng.normal(size=1), "prompt": "lift the red cube"}
            await connection.send(pack(observation))
            answer = unpack(await connection.recv())
            assert answer["actions"].shape == (8, 7)
            latencies_ms.append((time.monotonic() - due) * 1e3)
            missed = max(0, int((time.monotonic() - due) / PERIOD_S))
            dropped += missed
            tick += 1 + missed
    return latencies_ms, dropped


# -- the servers -------------------------------------------------------------------------------------------------------


class ConstantPolicy:
    """Answers at once, so that what remains is the server."""

    def initial_state(self, batch: int) -> "ConstantPolicy":
        """Nothing to remember."""
        return self

    def split(self, sizes: int) -> list["ConstantPolicy"]:
        """Nothing to part."""
        return [self] * sizes

    def act(self, observation: Mapping[str, Any], state: Any) -> tuple[np.ndarray, Any]:
        """Zeros."""
        return np.zeros((len(observation["state"]), 10, 7), np.float32), state


def serve_child(kind: str, api_key: str | None = None) -> None:
    """Serve on a free port and print it."""
    from robopolicy.control.server import ServerLimits, serve
    from robopolicy.types import ActionSpec, ArraySpec, PolicySpec

    def say(host: str, port: int) -> None:
        print(port, flush=True)

    if kind == "images":
        image = ArraySpec((224, 224, 3), "uint8")
        seen = {"front": image, "wrist": image, "state": ArraySpec((8,))}
        spec = PolicySpec(seen, ActionSpec(), chunk=10, window=1, instruction=True)
        serve(ConstantPolicy(), spec, port=0, limits=ServerLimits(max_batch=1), on_ready=say)
        return
    import torch

    from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
    from robopolicy.model.texts import Vocabulary

    torch.set_num_threads(1)
    config = ExperimentConfig().change({"memory.window": 8, "action_head.chunk": 8})
    observed = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
    facts = DemoFacts(ActionSpec(), observed, Vocabulary.of(["lift the red cube"]))
    policy = build_policy(config, facts).eval().freeze()
    serve(policy, policy.spec, port=0, api_key=api_key, on_ready=say)


@contextmanager
def child(*command: str) -> Iterator[int]:
    """A server process, and its port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.strip():
            raise SystemExit(f"{' '.join(command)}: the server did not come up")
        yield int(line)
    finally:
        process.terminate()
        process.wait()


def row(measured: str, system: str, figures_ms: list[float]) -> dict[str, Any]:
    """Quantiles [ms]."""
    p50, p99 = np.quantile(figures_ms, [0.5, 0.99])
    return {
        "measured": measured,
        "system": system,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "max_ms": max(figures_ms),
    }


if __name__ == "__main__":
    main()
