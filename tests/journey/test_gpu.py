"""`make gpu` on the CPU, so that the first run on a GPU is not the first run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("gpu_parts", ROOT / "eval" / "gpu.py")
assert spec is not None
assert spec.loader is not None
gpu = importlib.util.module_from_spec(spec)
sys.modules["gpu_parts"] = gpu
spec.loader.exec_module(gpu)


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """Guards against: 20 minutes of benchmarks lost to one failure at the start."""
    result = tmp_path / "good.json"
    bar = {"name": "tick", "value": 2.0, "goal": 1.0, "better": "lower", "passed": False}
    writes = f"open({str(result)!r}, 'w').write({json.dumps(json.dumps({'rows': [], 'bars': [bar]}))})"
    given = [
        gpu.Part("fails", ["-c", "raise SystemExit(3)"], 60),
        gpu.Part("hangs", ["-c", "import time; time.sleep(60)"], 0.5),
        gpu.Part("silent", ["-c", ""], 60, tmp_path / "none.json"),
        gpu.Part("good", ["-c", writes], 60, result),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *_: given)
    assert gpu.main(["--device", "cpu", "--folder", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "results.json").read_text())["parts"]
    failures = {part["name"]: part["failure"] for part in written}
    assert failures["fails"] == "exit code 3"
    assert "took longer" in failures["hangs"]
    assert "no result" in failures["silent"]
    assert failures["good"] is None
    shown = capsys.readouterr().out
    assert "MISSED" in shown
    assert "exit code 3" in shown


def test_the_limits_of_all_parts_make_25_minutes():
    """Guards against: a `make gpu` that takes longer than the lease of a machine."""
    assert sum(part.limit_s for part in gpu.parts("cuda", False, Path())) <= 25 * 60


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_part_runs_on_the_cpu_in_miniature(tmp_path):
    """Guards against: a benchmark of the GPU that ends in a traceback on the day there is one."""
    assert gpu.main(["--device", "cpu", "--smoke", "--folder", str(tmp_path)]) == 0
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [part["failure"] for part in parts] == [None] * len(parts)
    assert all(part["rows"] for part in parts if part["name"] in ("head", "simulator"))
