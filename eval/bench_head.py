"""One tick of the policy head beside the field's ways to run it, and one training step, against the machine's bounds.

    python eval/bench_head.py [--quick] [--action-heads] [--json FILE]

Ticks run on one CPU thread, and a time is that thread's CPU time, so that other processes of the machine count only by
what they take of caches and memory; the best of many calls counts, ours and the peers' alike. Training steps run on all
cores, and their median wall time counts. Sizes are RoboVLMs'
(4 x 1024, window 16, chunk 10, perceptrons 1024-512-256) and robomimic's (2 x 400, window 10). `--quick` leaves out
1024 episodes, `--action-heads` all but the kinds of action heads. With a GPU at hand `bench_head_gpu.py` measures the rest.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_table import finish
from head_measure import Report, best_ms, cold_ms, packed_rate
from head_peers import CarriedStep, OnnxStep, WindowRerun, lstm_of
from torch import Tensor, nn

from robopolicy import ActionSpec, PolicyHead
from robopolicy.heap import keep_freed_memory
from robopolicy.model.streaming import History

ACTION = ActionSpec(arm=6, gripper=1)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out 1024 episodes, which take a minute")
    parser.add_argument(
        "--action-heads", action="store_true", help="compare the kinds of action heads, and nothing else"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report()
    with torch.no_grad():
        action_heads(report)
        if not options.action_heads:
            single_episode(report, machine_bounds(report))
            for episodes in (64,) if options.quick else (64, 1024):
                many_episodes(report, episodes)
            robomimic_size(report)
    if not options.action_heads:
        training_step(report)
    finish(report.rows, report.bars, options.json)
    if not torch.cuda.is_available():
        print("\nno GPU here: everything above ran on the CPU, and the figures of bench_head_gpu.py are missing")


def action_heads(report: Report) -> None:
    """Batch 1 at RoboVLMs' size with each kind of action head, taken in turn: flow with its default of 4 steps and with 5."""
    tokens = torch.randn(1, 8, 1024)
    histories: tuple[History, ...] = ("window", "carry")
    for history in histories:
        heads = {
            kind: PolicyHead(1024, ACTION, window=16, chunk=10, history=history, action_head=kind).eval().freeze()
            for kind in ("regression", "gmm", "discrete", "flow")
        }
        five = PolicyHead(1024, ACTION, window=16, chunk=10, history=history, action_head="flow", steps=5)
        heads["flow, 5 steps"] = five.eval().freeze()
        ms = best_ms({kind: tick(head, tokens) for kind, head in heads.items()})
        for kind, taken in ms.items():
            section = f"one tick by action head, batch 1, 4 x 1024, {history}, K 10, float32"
            report.row(section, kind, taken, f"{taken / ms['regression']:.2f}x regression")
        report.bar(
            f"{history}: flow's tick, 5 steps / regression's", ms["flow, 5 steps"] / ms["regression"], 1.5, "lower"
        )


def machine_bounds(report: Report) -> dict[str, float]:
    """Memory bandwidth [bytes/ms] and matmul rate [FLOP/ms] of one thread, the best that could be seen."""
    memory = torch.randn(64 << 20)
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    ms = best_ms({"read": memory.sum, "matmul": lambda: left @ right})
    bandwidth = memory.nbytes / ms["read"]
    plain, packed = 2 * size**3 / ms["matmul"], packed_rate()
    section = "the machine, one thread"
    report.row(section, "read 256 MiB", ms["read"], f"{bandwidth / 1e6:.1f} GB/s")
    report.row(section, "torch.mm, 2048^3", ms["matmul"], f"{plain / 1e6:.0f} GFLOP/s")
    report.row(section, "oneDNN packed product, 2048^3", 2 * size**3 / packed, f"{packed / 1e6:.0f} GFLOP/s")
    return {"bandwidth": bandwidth, "rate": max(plain, packed)}


def single_episode(report: Report, machine: Mapping[str, float]) -> None:
    """Batch 1 at RoboVLMs' size, each way in a process of its own: what an earlier one leaves on the heap matters."""
    ms = {}
    for name in WAYS:
        ms[name] = in_own_process(time_alone, name)
    default_rerun, window = ms["nn.LSTM, window run again (oneDNN, torch's default)"], ms["ours, window, float32"]
    section = "one tick, batch 1, 4 x 1024, W 16, K 10, each in a process of its own"
    for name, taken in ms.items():
        note = f"{default_rerun / taken:.1f}x the default re-run"
        if name.startswith("ours"):
            note += f"; arm off by {error_of(name):.1e} of its largest value over 40 ticks"
        report.row(section, name, taken, note)
    head = large_head()
    size = sum(p.nbytes for p in head.parameters())
    flops = tick_flops(head, episodes=1)
    by_bytes, by_flops = size / machine["bandwidth"], flops / machine["rate"]
    report.row(section, "bound: weights read once", by_bytes, f"{size / 1e6:.0f} MB")
    report.row(section, "bound: arithmetic of the window", by_flops, f"{flops / 1e9:.2f} GFLOP at the packed rate")
    report.bar("batch 1: float32 window, times faster than nn.LSTM re-run", default_rerun / window, 6, "higher")
    report.bar("batch 1: float32 window tick / larger bound", window / max(by_bytes, by_flops), 1.5, "lower")
    report.bar("batch 1: float32 carry tick / bytes bound", ms["ours, carry, float32"] / by_bytes, 1.5, "lower")
    gain = default_rerun / ms["ours, window, int8"]
    report.bar("batch 1: int8 window, times faster than nn.LSTM re-run", gain, 20, "higher")
    peer = ms["ONNX Runtime int8, one carried step, LSTM alone"]
    memory_alone = ms["ours, carry, int8, memory alone"]
    report.bar("batch 1: int8 carry, memory alone / ONNX Runtime's int8 LSTM", memory_alone / peer, 1.5, "lower")
    report.bar(
        "batch 1: int8 carry, whole tick / ONNX Runtime's int8 LSTM", ms["ours, carry, int8"] / peer, 1.5, "lower"
    )


def large_head(history: History = "window") -> PolicyHead:
    """RoboVLMs' size, always the same weights."""
    torch.manual_seed(0)
    return PolicyHead(1024, ACTION, window=16, chunk=10, history=history).eval()


def _ours(history: History, precision: str) -> Callable[[], Any]:
    return tick(large_head(history).freeze(precision), torch.randn(1, 8, 1024))


def _memory_alone(history: History, precision: str) -> Callable[[], Any]:
    """Without pooling and action head, as ONNX Runtime's LSTM is measured."""
    memory = large_head(history).freeze(precision).memory  # type: ignore[arg-type]
    state, frame = memory.initial_state((1,)), torch.randn(1, 1024)

    def step() -> Tensor:
        nonlocal state
        hidden, state = memory.step(frame, state)
        return hidden

    return step


def _rerun() -> Callable[[], Any]:
    rerun, tokens = WindowRerun(large_head()), torch.randn(1, 8, 1024)
    for _ in range(16):
        rerun(tokens)
    return lambda: rerun(tokens)


def _carried() -> Callable[[], Any]:
    carried, tokens = CarriedStep(large_head()), torch.randn(1, 8, 1024)
    return lambda: carried(tokens)


def _onnx(int8: bool) -> Callable[[], Any]:
    step, frame = OnnxStep(large_head(), int8), torch.randn(1, 1, 1024).numpy()
    return lambda: step(frame)


WAYS: dict[str, Callable[[], Callable[[], Any]]] = {
    "nn.LSTM, window run again (oneDNN, torch's default)": _rerun,
    "nn.LSTM, window run again (oneDNN off)": lambda: without_onednn(_rerun()),
    "nn.LSTM, one carried step (oneDNN, torch's default)": _carried,
    "nn.LSTM, one carried step (oneDNN off)": lambda: without_onednn(_carried()),
    "ONNX Runtime, one carried step, LSTM alone": lambda: _onnx(int8=False),
    "ONNX Runtime int8, one carried step, LSTM alone": lambda: _onnx(int8=True),
    "ours, window, float32": lambda: _ours("window", "float32"),
    "ours, window, bf16": lambda: _ours("window", "bf16"),
    "ours, window, int8": lambda: _ours("window", "int8"),
    "ours, carry, float32": lambda: _ours("carry", "float32"),
    "ours, carry, bf16": lambda: _ours("carry", "bf16"),
    "ours, carry, int8": lambda: _ours("carry", "int8"),
    "ours, carry, int8, memory alone": lambda: _memory_alone("carry", "int8"),
}


def time_alone(name: str) -> float:
    """The least CPU time [ms] of one of `WAYS`, in a process that does nothing else."""
    torch.set_num_threads(1)
    with torch.no_grad():
        return best_ms({name: WAYS[name]()}, seconds=1.0, rounds=1)[name]


def error_of(name: str) -> float:
    """How far the arm of one of our ways is from the float32 LSTM of torch, relative to the arm's largest value."""
    _, history, precision = name.split(", ")[:3]
    head = large_head(history)  # type: ignore[arg-type]
    peer = WindowRerun(head) if history == "window" else CarriedStep(head)
    head = head.freeze(precision)  # type: ignore[arg-type]
    state, off, largest = head.initial_state(1), 0.0, 0.0
    for tokens in 2 * torch.randn(40, 1, 4, 1024):
        chunk, state = head.step(tokens, state)
        expected = peer(tokens)
        off = max(off, (chunk.arm - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return off / largest


def many_episodes(report: Report, episodes: int) -> None:
    """Batched ticks at RoboVLMs' size: arithmetic is the bound."""
    head = PolicyHead(1024, ACTION, window=16, chunk=10).eval()
    tokens = torch.randn(episodes, 1, 1024)
    rerun = WindowRerun(head)
    for _ in range(head.window - 1):
        rerun.frames.append(head.pool(tokens))
    calls = {"nn.LSTM, window run again": lambda: rerun(tokens), "ours, window, float32": tick(head.freeze(), tokens)}
    ms = best_ms(calls, seconds=0.1, rounds=3 if episodes < 1000 else 2)
    rate = packed_rate()
    flops = tick_flops(head, episodes)
    for name, taken in ms.items():
        share = flops / taken / rate
        note = f"{flops / taken / 1e6:.0f} GFLOP/s, {share:.0%} of the packed rate"
        report.row(f"one tick, {episodes} episodes, 4 x 1024, W 16", name, taken, note)
    share = flops / ms["ours, window, float32"] / rate
    report.bar(f"{episodes} episodes: share of the matmul rate", share, 0.8, "higher")
    gain = ms["nn.LSTM, window run again"] / ms["ours, window, float32"]
    report.bar(f"{episodes} episodes: times faster than nn.LSTM re-run", gain, 1.0, "higher")


def robomimic_size(report: Report) -> None:
    """Batch 1 at robomimic's size: an LSTM of 2 x 400 with one linear layer after it."""
    options: dict[str, Any] = {"window": 10, "chunk": 1, "layers": 2, "hidden": 400, "widths": ()}
    window = PolicyHead(19, ACTION, **options).eval()
    carry = PolicyHead(19, ACTION, **options, history="carry").eval()
    tokens = torch.randn(1, 1, 19)
    carried = CarriedStep(carry)

    def as_robomimic() -> Tensor:
        with torch.enable_grad():
            return carried(tokens)

    calls = {
        "nn.LSTM, one carried step, autograd on (robomimic's call)": as_robomimic,
        "nn.LSTM, one carried step": lambda: carried(tokens),
        "ours, window, float32": tick(window.freeze(), tokens),
        "ours, carry, float32": tick(carry.freeze(), tokens),
    }
    ms = best_ms(calls)
    section = "one tick, batch 1, 2 x 400, W 10"
    for name, taken in ms.items():
        report.row(section, name, taken)
    # The same calls on matrices of next to no size: Python and dispatch.
    options |= {"hidden": 8}
    small = {
        name: tick(PolicyHead(19, ACTION, **options, history=name).eval().freeze(), tokens)  # type: ignore[arg-type]
        for name in ("window", "carry")
    }
    for name, taken in best_ms(small).items():
        share = taken / ms[f"ours, {name}, float32"]
        report.row(section, f"of it Python and dispatch, {name} (2 x 8)", taken, f"{share:.0%} of the tick")
    for name, taken in cold_ms(calls).items():
        report.row(section, f"{name}, caches cold", taken, f"{taken / ms[name]:.2f}x; median")
    report.bar("2 x 400, batch 1: window tick [ms]", ms["ours, window, float32"], 0.5, "lower")


def training_step(report: Report) -> None:
    """Forward, loss, backward and Adam at robomimic's size, batch 100, window 10, on all cores as training runs."""
    rounds = [{name: in_own_process(step_alone, name) for name in TRAINING_STEPS} for _ in range(5)]
    ms = {name: median(taken[name] for taken in rounds) for name in TRAINING_STEPS}
    head, _ = small_head()
    rows, hidden = 100 * 10, 400
    products = 2 * rows * 4 * hidden * (19 + 3 * hidden)
    flops = 3 * products - 2 * rows * 4 * hidden * 19
    weights = sum(p.nbytes for p in head.memory.parameters())
    packed_ms = flops / packed_rate() / _cores()
    section = f"training step, 2 x 400, batch 100, window 10, {_cores()} cores"
    for name, taken in ms.items():
        report.row(section, name, taken, f"{flops / taken / 1e6:.0f} GFLOP/s")
    note = f"{flops / 1e9:.1f} GFLOP at the packed rate of each core; {weights / 1e6:.0f} MB of weights"
    report.row(section, "bound: arithmetic in float32", packed_ms, note)
    peer = ms["nn.LSTM, as robomimic writes it"]
    report.bar("training step, float32: times faster than nn.LSTM", peer / ms["ours, float32"], 1.5, "higher")
    gain = peer / ms["ours, bf16 (training.precision)"]
    report.bar("training step, bf16: times faster than float32 nn.LSTM", gain, 1.5, "higher")


def small_head() -> tuple[PolicyHead, nn.Linear]:
    """Robomimic's size: an LSTM of 2 x 400 and one linear layer after it."""
    return PolicyHead(19, ACTION, window=10, chunk=1, layers=2, hidden=400, widths=()), nn.Linear(400, 7)


def _step_of(run: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, bf16: bool) -> Callable[[], None]:
    frames, target = torch.randn(100, 10, 19), torch.rand(100, 10, 7)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted = run(frames)
        nn.functional.mse_loss(predicted.float(), target).backward()
        optimizer.step()

    return step


def _step_as_robomimic() -> Callable[[], None]:
    head, out = small_head()
    lstm = lstm_of(head).train()
    adam = torch.optim.Adam([*lstm.parameters(), *out.parameters()], lr=1e-4)
    return _step_of(lambda frames: out(lstm(frames)[0]), adam, bf16=False)


def _step_as_ours(bf16: bool) -> Callable[[], None]:
    keep_freed_memory()  # as `train` does
    head, out = small_head()
    adam = torch.optim.AdamW([*head.memory.parameters(), *out.parameters()], lr=1e-4, fused=True)
    return _step_of(lambda frames: out(head.memory(frames)), adam, bf16)


TRAINING_STEPS: dict[str, Callable[[], Callable[[], None]]] = {
    "nn.LSTM, as robomimic writes it": _step_as_robomimic,
    "ours, float32": lambda: _step_as_ours(bf16=False),
    "ours, bf16 (training.precision)": lambda: _step_as_ours(bf16=True),
}


def step_alone(name: str) -> float:
    """The median wall time [ms] of one of `TRAINING_STEPS`: what is paid at every step, page faults and all."""
    torch.set_num_threads(_cores())
    step = TRAINING_STEPS[name]()
    times = []
    for _ in range(70):
        began = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times[10:])


def in_own_process(measure: Callable[[str], float], name: str) -> float:
    """What `measure` gives in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(measure, name).result()


def tick(head: PolicyHead, tokens: Tensor) -> Callable[[], Tensor]:
    """One step of a running stream, with a window that is full."""
    state = head.initial_state(len(tokens))
    state = state.__class__(state.history, state.age + head.window, state.tensors)

    def step() -> Tensor:
        nonlocal state
        chunk, state = head.step(tokens, state)
        return chunk.arm

    return step


def tick_flops(head: PolicyHead, episodes: int) -> float:
    """Multiplications and additions that one tick of the window needs, the first row's from zero left out."""
    cell, rows = head.memory, episodes * head.window
    recurrent = 2 * (rows - episodes) * cell.num_layers * 4 * cell.hidden_size**2
    between = 2 * rows * (cell.num_layers - 1) * 4 * cell.hidden_size**2
    first = 2 * episodes * 4 * cell.hidden_size * cell.input_size
    return recurrent + between + first + 2 * episodes * sum(p.numel() for p in head.action_head.parameters())


def without_onednn(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with torch's oneDNN kernels switched off."""

    def switched() -> Any:
        before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return call()
        finally:
            torch._C._set_mkldnn_enabled(before)

    return switched


def _cores() -> int:
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
