"""Verbs ended by SIGKILL at random moments: the same command, or it with --resume, ends where an uninterrupted one ends."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli import main
from tests.tiny_backbones import save_backbone

KILLS = 2
"""Random moments for each verb."""
ENCODE = ["encode", "{demos}", "--encoder", "transformers", "--model", "{model}", "--device", "cpu"]
IMPROVE = ["improve", "{run}", "--task", "lift", "--run-dir", "{out}/better", "--iterations", "3", "--num-envs", "2"]
IMPROVE += [
    "--checkpoint-every",
    "1",
    "--reward",
    "progress",
    "--ppo.rollout_steps",
    "20",
    "--ppo.warmup_iterations",
    "0",
]
SMALL = ["--data.files", "{demos}", "--memory.hidden", "8", "--memory.window", "3", "--training.max_steps", "6"]
SMALL += ["--training.checkpoint_every", "2", "--training.valid_every", "3"]
DAGGER = ["dagger", *SMALL, "--task", "reach", "--run-dir", "{out}/rounds", "--rounds", "1", "--episodes", "2"]
DAGGER += ["--num-envs", "2", "--eval-episodes", "1", "--data.obs_keys", "ee_pose", "gripper"]
VERBS: dict[str, tuple[list[str], str]] = {
    "encode": (ENCODE, "demos.tokens.hdf5"),
    "encode to a file": ([*ENCODE, "--out", "{out}/new.hdf5"], "new.hdf5"),
    "improve": (IMPROVE, "better/policy.safetensors"),
    "train": (["train", *SMALL, "--run-dir", "{out}/run"], "run/policy.safetensors"),
    "dagger": (DAGGER, "rounds/round_1/policy.safetensors"),
    "report": (["report", "{run}", "--out", "{out}/report.html"], "report.html"),
    "salvage": (["check", "{demos}", "--salvage", "{out}/good.hdf5"], "good.hdf5"),
    "page": (["check", "{demos}", "--html", "{out}/page.html"], "page.html"),
    "edit": (["edit", "{demos}", "--drop", "demo_2", "--out", "{out}/merged.hdf5"], "merged.hdf5"),
    "convert": (["convert", "{demos}", "{out}/set", "--format", "lerobot"], "set/meta/info.json"),
    "view": (["view", "{demos}", "--out", "{out}/demo.gif"], "demo.gif"),
}
"""The words of each verb, and the file that it ends with."""
ONCE = ("encode to a file", "salvage", "edit", "convert")
"""These refuse a target that exists, which is then whole."""
PAGES = ("report", "page", "view")
"""A kill while these write may leave a hidden file of at most a page's size beside it, which nothing names or removes."""


PROGRAM = """
import sys
from robopolicy.cli import main
middle = sys.argv.index("--then")
main(sys.argv[1:middle])  # so that what is imported, compiled and cached now is not what the kill meets
print("ready", flush=True)
sys.exit(main(sys.argv[middle + 1:]))
"""


def is_killed(warm: list[str], words: list[str], after_s: float) -> bool:
    """Run a verb in a process of its own, with SIGKILL after that time; returns whether it was still running."""
    program = [sys.executable, "-c", PROGRAM, *warm, "--then", *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert any(line == "ready\n" for line in process.stdout)
        time.sleep(after_s)
        process.kill()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_ends_as_an_uninterrupted_one(tmp_path, tiny_demos, random_run, capsys, verb):
    """Guards against: a file cut short under its final name, or leftovers that stop the same command for ever."""
    pytest.importorskip("transformers", reason="the extra vlm isn't installed")
    model, (template, result) = save_backbone("clip", tmp_path / "model"), VERBS[verb]
    run = Path(shutil.copytree(random_run, tmp_path / "run"))
    (run / "metrics.json").write_text(json.dumps({"provenance": {}, "train": [{"step": 1, "loss": 0.5}]}))

    def words_for(name: str) -> list[str]:
        out = tmp_path / name
        out.mkdir()
        shutil.copy(tiny_demos, out / "demos.hdf5")
        names = {"demos": out / "demos.hdf5", "model": model, "run": run, "out": out}
        return [word.format(**names) for word in template]

    assert main(words_for("first")) in (0, 1)
    words = words_for("whole")
    began = time.monotonic()
    assert main(words) in (0, 1)
    whole_s, whole = time.monotonic() - began, content(tmp_path / "whole", result)
    for place, share in enumerate(np.random.default_rng(len(verb)).uniform(0.05, 0.95, KILLS)):
        after_s, name = share * whole_s, f"killed_{place}"
        while not is_killed(words_for(f"{name}_warm"), words := words_for(name), after_s):
            after_s, name = after_s / 2, f"{name}_sooner"  # the machine was busier when the time was taken
        out = tmp_path / name
        if not (out / result).exists() or verb not in ONCE:
            assert main(words) in (0, 1) or main([*words, "--resume"]) == 0, words
        assert content(out, result) == whole
        said = capsys.readouterr().out
        left = [path for path in out.iterdir() if ".unfinished" in path.name or path.suffix == ".parts"]
        if verb not in PAGES:
            assert not [path for path in left if str(path) not in said], "what is left beside the result is named"
        print(verb, f"{whole_s:.2f} s, killed after {after_s:.2f} s")


def content(out: Path, result: str) -> bytes:
    """The bytes of a result, without the folder's name."""
    return (out / result).read_bytes().replace(str(out).encode(), b"")
