"""The policy head on a GPU: one tick as a CUDA graph, and one training step, against the machine's bounds.

    python eval/bench_head_gpu.py [--json FILE]
    python eval/bench_head_gpu.py --device cpu --smoke      tiny sizes, without a graph: shows that the benchmark runs

RoboVLMs' size (4 x 1024, window 16, chunk 10). A tick is captured once and replayed, its state copied back into the
graph's own memory; bounds are weights read once over the bandwidth of a copy, and arithmetic over the rate of a large product.
Without a GPU it says so, and the exit code is 2.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_head import ACTION, tick_flops
from bench_table import finish
from head_measure import Report

from robopolicy import PolicyHead

EPISODES = (1, 64, 1024)
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Sizes:
    """What is measured, and where."""

    device: str = "cuda"
    width: int = 1024
    hidden: int = 1024
    episodes: tuple[int, ...] = EPISODES
    windows: int = 1024
    product: int = 8192
    copied_bytes: int = 1 << 30

    def head(self, dtype: torch.dtype = torch.float32) -> PolicyHead:
        """RoboVLMs' head, or a small one."""
        return PolicyHead(self.width, ACTION, window=16, chunk=10, hidden=self.hidden).to(self.device, dtype)


TINY = Sizes("cpu", 16, 16, (1, 2), 4, 64, 1 << 16)


def main() -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--device", default="cuda", help="cuda; cpu with --smoke only")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    options = parser.parse_args()
    sizes = replace(TINY, device=options.device) if options.smoke else Sizes(options.device)
    if options.device != "cpu" and not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing measured")
        return 2
    torch.manual_seed(0)
    report = Report()
    for dtype in DTYPES:
        for episodes in sizes.episodes:
            captured_tick(report, sizes, dtype, episodes)
    training_step(report, sizes)
    finish(report.rows, report.bars, options.json)
    return 0


def captured_tick(report: Report, sizes: Sizes, dtype: torch.dtype, episodes: int) -> None:
    """One tick of many episodes, replayed from a graph."""
    head = sizes.head(dtype).eval()
    tokens = torch.randn(episodes, 8, sizes.width, device=sizes.device, dtype=dtype)
    state = head.initial_state(episodes)

    def step() -> None:
        _, after = head.step(tokens, state)
        for mine, new in zip((state.age, *state.tensors), (after.age, *after.tensors), strict=True):
            mine.copy_(new)

    with torch.no_grad():
        ms = device_ms(captured(step) if sizes.device != "cpu" else step, sizes.device)
    by_bytes = sum(p.nbytes for p in head.parameters()) / bandwidth(sizes)
    by_flops = tick_flops(head, episodes) / matmul_rate(sizes, dtype)
    bound = max(by_bytes, by_flops)
    name = f"{episodes} episodes, {str(dtype).removeprefix('torch.')}"
    report.row("one tick as a CUDA graph, 4 x 1024, W 16", name, ms, f"{ms / bound:.1f}x the bound of {bound:.3f} ms")
    if episodes == 1:
        report.bar(f"{name}: tick [us]", ms * 1e3, 100, "lower")
        report.bar(f"{name}: tick / bound", ms / bound, 4, "lower")


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as the replay of a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def training_step(report: Report, sizes: Sizes) -> None:
    """Forward and backward of 1024 windows of 16 frames in bfloat16."""
    head = sizes.head(torch.bfloat16)
    frames = torch.randn(sizes.windows, 16, sizes.width, device=sizes.device, dtype=torch.bfloat16)

    def step() -> None:
        head.zero_grad()
        chunk = head(frames[:, :, None])  # one token per frame
        (chunk.arm.float().square().mean() + chunk.gripper_logit.float().square().mean()).backward()

    ms = device_ms(step, sizes.device)
    flops = 3 * 2 * frames.shape[0] * frames.shape[1] * sum(p.numel() for p in head.parameters())
    share = flops / ms / matmul_rate(sizes, torch.bfloat16)
    report.row("training step, 1024 windows of 16, bf16", "forward and backward", ms, f"{share:.0%} of the matmul rate")
    report.bar("training, batch 1024 x W 16, bf16: share of the matmul rate", share, 0.4, "higher")


def device_ms(call: Callable[[], Any], device: str, calls: int = 20) -> float:
    """Time of one call on the device [ms], the best of five means; on the CPU of one call."""
    call()
    if device == "cpu":
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    best = float("inf")
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / calls)
    return best


def bandwidth(sizes: Sizes) -> float:
    """Device memory bandwidth [bytes/ms], of a copy that reads and writes."""
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_ms(lambda: target.copy_(source), sizes.device)


def matmul_rate(sizes: Sizes, dtype: torch.dtype) -> float:
    """Rate of a large product [FLOP/ms]."""
    left, right = (torch.randn(sizes.product, sizes.product, device=sizes.device, dtype=dtype) for _ in range(2))
    return 2 * sizes.product**3 / device_ms(lambda: left @ right, sizes.device, calls=5)


if __name__ == "__main__":
    sys.exit(main())
