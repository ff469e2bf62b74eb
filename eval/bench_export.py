"""One tick of an exported policy on one CPU thread, beside eager torch that re-runs its window by nn.LSTM.

    python eval/bench_export.py [--json FILE]

Sizes: RoboVLMs' head (4 x 1024, window 16, chunk 10) and robomimic's (2 x 400, window 10, chunk 1). The whole policy is
timed: normalization, encoder, pooling, memory, action head and un-normalization. The peer does what RoboVLMs does at
run time, with everything but the memory as ours: it keeps the pooled frames and runs nn.LSTM over all of them each tick.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_table import bar, show
from torch import nn

from robopolicy.control import runtime
from robopolicy.control.export import export_policy
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec


def sizes(layers: int, hidden: int, window: int, chunk: int, widths: tuple[int, ...]) -> dict[str, Any]:
    """Changes of a config."""
    memory = {"memory.layers": layers, "memory.hidden": hidden, "memory.window": window}
    return memory | {"action_head.chunk": chunk, "action_head.widths": list(widths)}


SIZES = {
    "4x1024, window 16, chunk 10": sizes(layers=4, hidden=1024, window=16, chunk=10, widths=(1024, 512, 256)),
    "2x400, window 10, chunk 1": sizes(layers=2, hidden=400, window=10, chunk=1, widths=(400,)),
}
OBS = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,)), "cube_red": ArraySpec((10,))}
GOAL = 10.0
"""Times faster than eager nn.LSTM that int8 is to be (issue 5, bar 5)."""


def main() -> None:
    """Time every way at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=40, help="ticks in each turn of each way")
    parser.add_argument("--turns", type=int, default=3, help="turns of each way")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, bars = [], []
    for size, head in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            ways, errors = make_ways(Path(folder), head)
            figures = take_turns(ways, options.ticks, options.turns)
        peer = figures["eager torch, nn.LSTM over the window"]
        for name, tick_ms in figures.items():
            rows.append(
                {"policy": size, "way": name, "tick_ms": tick_ms, "times": peer / tick_ms} | errors.get(name, {})
            )
        if head["memory.hidden"] == 1024:
            bars.append(bar(f"{size}: int8 over eager nn.LSTM", peer / figures["ONNX int8"], GOAL))
    show(rows, bars, options.json)


def make_ways(
    folder: Path, head: dict[str, Any]
) -> tuple[dict[str, Callable[[], object]], dict[str, dict[str, float]]]:
    """What to time: each call is one tick; and the exports' errors, in shares of an action column's range."""
    torch.manual_seed(0)
    config = ExperimentConfig().change({"encoder.width": 256, "encoder.hidden": 256} | head)
    policy = build_policy(config, DemoFacts(ActionSpec(), OBS, Vocabulary.of(["lift the red cube"]))).eval()
    seen = {key: np.zeros((1, *spec.shape), np.float32) for key, spec in OBS.items()} | {
        "instruction": "lift the red cube"
    }
    ways: dict[str, Callable[[], object]] = {
        "eager torch, nn.LSTM over the window": Rerun(policy, seen).tick,
        "eager torch, policy.act": Streamed(policy, seen).tick,
    }
    errors = {}
    for name, int8 in (("ONNX float32", False), ("ONNX int8", True)):
        out = export_policy(policy, folder / name, int8=int8)
        errors[name] = {"error": json.loads((out / runtime.MANIFEST).read_text())["error_to_torch"]}
        ways[name] = Streamed(runtime.load(out, threads=1), seen).tick
    return ways, errors


class Streamed:
    """A policy that is fed one frame a tick."""

    def __init__(self, policy: object, seen: dict) -> None:
        self.policy, self.seen = policy, seen
        self.state = policy.initial_state(1)

    def tick(self) -> None:
        """One answer."""
        _, self.state = self.policy.act(self.seen, self.state)


class Rerun:
    """The same policy with its memory as nn.LSTM, run over the whole window each tick."""

    def __init__(self, policy: ChunkPolicy, seen: dict) -> None:
        self.policy, self.seen = policy, seen
        memory = policy.head.memory
        self.lstm = nn.LSTM(memory.input_size, memory.hidden_size, memory.num_layers, batch_first=True).eval()
        self.lstm.load_state_dict(memory.state_dict())
        self.frames = torch.zeros(1, policy.window, memory.input_size)

    @torch.no_grad()
    def tick(self) -> None:
        """One answer."""
        policy = self.policy
        obs = policy.inputs(self.seen, policy.obs)
        encoding = policy.encode(obs, policy.instruction_text(self.seen["instruction"], (1,)))
        pooled = policy.head.pool(encoding.tokens, encoding.token_valid)
        self.frames = torch.cat([self.frames[:, 1:], pooled[:, None]], dim=1)
        hidden, _ = self.lstm(self.frames)
        policy.action_normalizer.to_rows(policy.head.action_head(hidden[:, -1]))


def take_turns(ways: dict[str, Callable[[], object]], ticks: int, turns: int) -> dict[str, float]:
    """Median time of a tick [ms], the ways taking turns so that all meet the same machine."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, tick in ways.items():
            for warm_up in range(5 + ticks):
                began = time.perf_counter()
                tick()
                if warm_up >= 5:
                    figures[name].append((time.perf_counter() - began) * 1e3)
    return {name: float(np.median(times)) for name, times in figures.items()}


if __name__ == "__main__":
    main()
