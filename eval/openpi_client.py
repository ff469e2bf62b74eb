"""openpi's own client drives a trained policy in our simulator, beside the same policy in process on the same seeds.

    python -m venv peer && peer/bin/pip install openpi-client typing_extensions 'numpy<2'
    python eval/openpi_client.py RUN --peer-python peer/bin/python [--horizon H] [--episodes 50] [--json FILE]

Three kinds of process: the policy server; this one, with the simulator; and for each simulated world one in openpi's
environment, with its WebsocketClientPolicy and ActionChunkBroker(action_horizon=H), which gets observations on stdin and
gives actions on stdout. With H > 1 the policy must have been trained with `--data.frame_stride H`.
"""

import argparse
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from bench_serve import child
from bench_table import bar, show

from robopolicy.client import pack, unpack
from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.types import Policy

PEER = Path(__file__).parent / "openpi_peer.py"


class OpenpiActor:
    """The worlds' actions by openpi's client, one process and one connection for each world."""

    def __init__(self, peer_python: str, port: int, horizon: int, keys: Sequence[str], worlds: int) -> None:
        command = [peer_python, "-I", str(PEER), "drive", str(port), str(horizon)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._clients = [subprocess.Popen(command, **pipes) for _ in range(worlds)]
        self._keys = keys

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """A new connection for each world where an episode begins."""
        for world in np.flatnonzero(done):
            self._send(world, None)

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ask all clients at once, then gather their answers."""
        for world, instruction in enumerate(instructions):
            self._send(world, {key: obs[key][world] for key in self._keys} | {"prompt": instruction})
        actions = np.stack([self._receive(world) for world in range(len(instructions))])
        return actions, actions

    def close(self) -> None:
        """End the clients' processes."""
        for client in self._clients:
            client.communicate()

    def _send(self, world: int, message: object) -> None:
        data, pipe = pack(message), self._clients[world].stdin
        assert pipe is not None
        pipe.write(struct.pack("<I", len(data)) + data)
        pipe.flush()

    def _receive(self, world: int) -> np.ndarray:
        pipe = self._clients[world].stdout
        assert pipe is not None
        header = pipe.read(4)
        if len(header) < 4:
            raise SystemExit(f"openpi's client of world {world} ended; its words are above")
        return unpack(pipe.read(struct.unpack("<I", header)[0]))


class InProcessBroker:
    """What openpi's broker makes of a policy, in process: each world asks for a chunk every `horizon` steps."""

    def __init__(self, policy: Policy, horizon: int, keys: Sequence[str], worlds: int) -> None:
        self._policy, self._horizon, self._keys = policy, horizon, keys
        self._states: list = [None] * worlds
        self._actions: list[list[np.ndarray]] = [[] for _ in range(worlds)]

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """A fresh memory for each world where an episode begins."""
        for world in np.flatnonzero(done):
            self._states[world], self._actions[world] = self._policy.initial_state(1), []

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The next action of each world's chunk."""
        for world, instruction in enumerate(instructions):
            if not self._actions[world]:
                seen = {key: obs[key][world : world + 1] for key in self._keys} | {"instruction": [instruction]}
                chunk, self._states[world] = self._policy.act(seen, self._states[world])
                self._actions[world] = list(np.asarray(chunk[0])[: self._horizon])
        actions = np.stack([left.pop(0) for left in self._actions])
        return actions, actions


def main() -> None:
    """Run both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of a trained policy")
    parser.add_argument("--peer-python", help="Python of an environment with openpi-client")
    parser.add_argument("--task", help="task of the simulator; default: the demos' own")
    parser.add_argument("--horizon", type=int, default=1, help="actions that openpi's broker executes per call")
    parser.add_argument("--episodes", type=int, default=50, help="episodes, one per seed")
    parser.add_argument("--seed", type=int, default=10000, help="seed of the first episode")
    parser.add_argument("--worlds", type=int, default=5, help="worlds at once, each with a client of its own")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_run(options.run)
    elif options.peer_python is None:
        parser.error("--peer-python is needed; the top of this help says how to make its environment")
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """In process first, then over openpi's client, on the same seeds."""
    import torch

    from robopolicy.control.server import open_policy
    from robopolicy.rollout.episodes import Timing, run_episodes
    from robopolicy.rollout.statistics import summarize
    from robopolicy.sim.env import RobotVectorEnv
    from robopolicy.sim.evaluation import evaluate

    torch.set_num_threads(1)
    policy, spec = open_policy(options.run)
    task = options.task or spec.provenance["task"]
    seeds = range(options.seed, options.seed + options.episodes)
    sizes = [policy.spec.observation[camera].shape[0] for camera in policy.spec.cameras]
    env = RobotVectorEnv(task, options.worlds, cameras=policy.spec.cameras, image_size=sizes[0] if sizes else 64)
    if options.horizon == 1:
        here = evaluate(policy, env, seeds, RecedingOptions(replan_every=1))
    else:
        timing, began = Timing(), time.perf_counter()
        broker = InProcessBroker(policy, options.horizon, tuple(policy.spec.observation), options.worlds)
        episodes = list(run_episodes(env, broker, seeds, timing=timing))
        here = summarize(task, episodes, env.control_dt, timing, time.perf_counter() - began, {})
    timing, began = Timing(), time.perf_counter()
    with child(sys.executable, __file__, options.run, "--serve") as port:
        actor = OpenpiActor(options.peer_python, port, options.horizon, tuple(policy.spec.observation), options.worlds)
        episodes = list(run_episodes(env, actor, seeds, timing=timing))
        actor.close()
    there = summarize(task, episodes, env.control_dt, timing, time.perf_counter() - began, {})
    env.close()
    low, high = here.interval
    outside = round(max(0.0, low - there.success_rate, there.success_rate - high), 9)
    agree = sum(a["success"] == b["success"] for a, b in zip(here.outcomes, there.outcomes, strict=True))
    rows = [
        {
            "system": name,
            "task": task,
            "horizon": options.horizon,
            "successes": result.successes,
            "episodes": result.episodes,
            "interval": "{:.3f} .. {:.3f}".format(*result.interval),
            "mean_steps": result.mean_steps,
            "inference_ms": 1e3 * result.inference_s / result.env_steps,
        }
        for name, result in (("in process", here), ("openpi's client", there))
    ]
    bars = [bar("success over openpi's client: outside the interval of in-process eval by", outside, 0.0, "lower")]
    print(f"same outcome on {agree} of {len(seeds)} seeds")
    show(rows, bars, options.json)


def serve_run(folder: str) -> None:
    """Serve a run on a free port and print it."""
    import torch

    from robopolicy.control.server import open_policy, serve

    torch.set_num_threads(1)
    serve(*open_policy(folder), port=0, on_ready=lambda host, port: print(port, flush=True))


if __name__ == "__main__":
    main()
