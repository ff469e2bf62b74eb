"""Everything that needs a GPU, at one command: its tests, then every benchmark that uses it, then the demo end to end.

    python eval/gpu.py [--json runs/gpu.json]           on a machine with a GPU (make gpu)
    python eval/gpu.py --device cpu --smoke             the same parts, tiny, on the CPU: they start, run and write

Each part is a process with a time limit. One that fails or hangs does not stop the others; the table at the end says which
did, and the exit code is 1. Needs no network.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """One process: what it measures, its words after `python`, and how long it may take."""

    name: str
    words: Sequence[str]
    limit_s: float
    result: Path | None = None
    """JSON with `rows` and `bars` that it writes."""


def parts(device: str, smoke: bool, folder: Path) -> list[Part]:
    """All parts, cheapest first; together at most 25 minutes."""
    head, sim = folder / "head.json", folder / "sim.json"
    tests = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    worlds = ["--worlds", "1", "--warp-worlds", "1", "--threads", "1", "--image-sizes", "64", "--image-worlds", "1"]
    demo = ["--demos", "2", "--episodes", "1", "--max-steps", "2"]
    found = [
        Part("tests", [*tests, "--collect-only"] if smoke else tests, 300),
        Part(
            "head",
            ["eval/bench_head_gpu.py", "--device", device, *(["--smoke"] if smoke else []), "--json", str(head)],
            180,
            head,
        ),
        Part(
            "simulator",
            ["eval/bench_sim.py", *([*worlds, "--seconds", "0.02"] if smoke else []), "--json", str(sim)],
            480,
            sim,
        ),
        Part("demo", ["eval/demo.py", "--run-dir", str(folder / "demo"), "--device", device, *(demo * smoke)], 540),
    ]
    # A trial shows that each part runs, on a machine that may be busy; only the real run has to keep to 25 minutes.
    return [replace(part, limit_s=4 * part.limit_s) for part in found] if smoke else found


def run_part(part: Part) -> dict[str, Any]:
    """Run one part with its time limit and gather what it wrote; a failure is a value, never an exception."""
    print(f"== {part.name}: python {' '.join(part.words)}", flush=True)
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, *part.words], cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=part.limit_s)
        failure = None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        failure = f"took longer than {part.limit_s:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: Mapping[str, Any] = {}
    if part.result is not None:
        try:
            found = json.loads(part.result.read_text())
        except (OSError, ValueError) as error:
            failure = failure or f"no result: {error}"
    return {
        "name": part.name,
        "command": " ".join(["python", *part.words]),
        "seconds": round(time.monotonic() - began, 1),
        "failure": failure,
        "rows": found.get("rows", []),
        "bars": found.get("bars", []),
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """What ran and what failed, then every figure with its bound."""
    lines = [f"{'part':<12}{'seconds':>8}   outcome"]
    lines += [f"{each['name']:<12}{each['seconds']:>8}   {each['failure'] or 'completed'}" for each in results]
    bars = [bar for each in results for bar in each["bars"]]
    if bars:
        lines += ["", f"{'figure':<70}{'value':>12}{'bound':>14}"]
    for bar in bars:
        sign = ">=" if bar["better"] == "higher" else "<="
        verdict = "" if bar["passed"] else "   MISSED"
        lines.append(f"{bar['name']:<70}{bar['value']:>12.4g}{sign:>4}{bar['goal']:>10.4g}{verdict}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The device and the versions."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every part; returns 1 if one failed, 2 without a GPU where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a trial of the parts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that each part runs")
    parser.add_argument("--only", nargs="+", help="names of parts to run")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="where the parts write")
    parser.add_argument("--json", type=Path, default=None, help="where to write all results; default: in the folder")
    options = parser.parse_args(arguments)
    facts = machine()
    if options.device != "cpu" and facts["gpu"] is None:
        print(f"--device {options.device}: torch finds no CUDA device; --device cpu --smoke tries the parts on the CPU")
        return 2
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    out = (options.json or folder / "results.json").resolve()
    results: list[dict[str, Any]] = []
    for part in parts(options.device, options.smoke, folder):
        if options.only and part.name not in options.only:
            continue
        results.append(run_part(part))
        # Written after each part: whatever ends this process, the results so far are kept.
        out.write_text(json.dumps({"machine": facts, "smoke": options.smoke, "parts": results}, indent=1) + "\n")
    print(f"\n{table(results)}\n{out}")
    return int(any(each["failure"] for each in results))


if __name__ == "__main__":
    sys.exit(main())
