"""The policy head on a GPU: one tick as a CUDA graph, and one training step, against the machine's bounds.

    python eval/bench_head_gpu.py [--json FILE]

RoboVLMs' size (4 x 1024, window 16, chunk 10). A tick is captured once and replayed, its state copied back into the
graph's own memory; bounds are weights read once over the bandwidth of a copy, and arithmetic over the rate of a large product.
Without a GPU it says so and ends.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_head import ACTION, tick_flops
from head_measure import Report

from robopolicy import PolicyHead

EPISODES = (1, 64, 1024)
DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    torch.manual_seed(0)
    report = Report()
    for dtype in DTYPES:
        for episodes in EPISODES:
            captured_tick(report, dtype, episodes)
    training_step(report)
    report.show_bars()
    if options.json:
        machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
        report.write(options.json, machine)


def captured_tick(report: Report, dtype: torch.dtype, episodes: int) -> None:
    """One tick of many episodes, replayed from a graph."""
    head = PolicyHead(1024, ACTION, window=16, chunk=10).eval().to("cuda", dtype)
    tokens = torch.randn(episodes, 8, 1024, device="cuda", dtype=dtype)
    state = head.initial_state(episodes)

    def step() -> None:
        _, after = head.step(tokens, state)
        for mine, new in zip((state.age, *state.tensors), (after.age, *after.tensors), strict=True):
            mine.copy_(new)

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    ms = gpu_ms(graph.replay)
    by_bytes = sum(p.nbytes for p in head.parameters()) / bandwidth()
    by_flops = tick_flops(head, episodes) / matmul_rate(dtype)
    bound = max(by_bytes, by_flops)
    name = f"{episodes} episodes, {str(dtype).removeprefix('torch.')}"
    report.row("one tick as a CUDA graph, 4 x 1024, W 16", name, ms, f"{ms / bound:.1f}x the bound of {bound:.3f} ms")
    if episodes == 1:
        report.bar(f"{name}: tick [us]", ms * 1e3, 100, "lower")
        report.bar(f"{name}: tick / bound", ms / bound, 4, "lower")


def training_step(report: Report) -> None:
    """Forward and backward of 1024 windows of 16 frames in bfloat16."""
    head = PolicyHead(1024, ACTION, window=16, chunk=10).to("cuda", torch.bfloat16)
    frames = torch.randn(1024, 16, 1024, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        head.zero_grad()
        chunk = head.decode(frames)
        (chunk.arm.float().square().mean() + chunk.gripper_logit.float().square().mean()).backward()

    ms = gpu_ms(step)
    flops = 3 * 2 * frames.shape[0] * frames.shape[1] * sum(p.numel() for p in head.parameters())
    share = flops / ms / matmul_rate(torch.bfloat16)
    report.row("training step, 1024 windows of 16, bf16", "forward and backward", ms, f"{share:.0%} of the matmul rate")
    report.bar("training, batch 1024 x W 16, bf16: share of the matmul rate", share, 0.4, "higher")


def gpu_ms(call: Callable[[], Any], calls: int = 20) -> float:
    """Time of one call on the device [ms], the best of five means."""
    call()
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


def bandwidth() -> float:
    """Device memory bandwidth [bytes/ms], of a copy that reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / gpu_ms(lambda: target.copy_(source))


def matmul_rate(dtype: torch.dtype) -> float:
    """Rate of a large product [FLOP/ms]."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / gpu_ms(lambda: left @ right, calls=5)


if __name__ == "__main__":
    main()
