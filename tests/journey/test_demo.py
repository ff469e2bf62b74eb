"""`make demo`, made small: pixels and instructions to a success rate, and on again after an interruption."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--demos", "6", "--episodes", "3", "--max-steps", "3"]


def demo(folder: Path) -> int:
    """What `make demo` runs."""
    return runpy.run_path(str(ROOT / "eval/demo.py"))["main"](["--run-dir", str(folder), *SMALL])


def test_the_demo_ends_with_its_summary_and_goes_on_after_an_interruption(tmp_path, monkeypatch, capsys):
    """Guards against: ten minutes of a new user's time lost to one Ctrl-C, or a result overwritten by accident."""
    monkeypatch.chdir(ROOT)
    assert demo(tmp_path) == 0
    first = json.loads((tmp_path / "summary.json").read_text())
    assert first["episodes"] == 3
    assert first["success_rate"] == first["successes"] / 3
    assert first["interval"][0] <= first["success_rate"] <= first["interval"][1]
    assert set(first["wall_s"]) == {"collect", "train", "eval"}
    assert (tmp_path / "report" / "report.html").is_file()
    videos = {path.name.partition("_")[0] for path in (tmp_path / "report").glob("*.mp4")}
    assert videos == ({"success"} if first["successes"] else set()) | ({"failure"} if first["successes"] < 3 else set())
    capsys.readouterr()

    times = tmp_path / "wall_s.json"
    times.write_text(json.dumps({"collect": first["wall_s"]["collect"]}))  # as if stopped while training
    (tmp_path / "summary.json").unlink()
    assert demo(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "robopolicy collect: done before" in shown
    assert "--resume" in shown
    assert json.loads((tmp_path / "summary.json").read_text())["successes"] == first["successes"]


@pytest.mark.parametrize("option", ["--demos", "--episodes"])
def test_a_number_that_is_none_is_refused(option, tmp_path, capsys):
    """Guards against: a typo that starts ten minutes of work."""
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "eval/demo.py"))["main"](["--run-dir", str(tmp_path), option, "many"])
    assert f"argument {option}: invalid int value: 'many'" in capsys.readouterr().err
