"""Two processes train as one: the same losses for the same global batch, and an exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robopolicy.experiment import ExperimentConfig, config_to_dict
from robopolicy.training import callbacks
from robopolicy.training.train import train
from tests.small_runs import SMALL

SCRIPT = """
import os, signal, sys
from pathlib import Path
from lightning.pytorch import Callback
from robopolicy.experiment import read_config
from robopolicy.training import callbacks
from robopolicy.training.train import TrainingInterrupted, train

callbacks.LOG_EVERY = 1
config, runs = read_config(sys.argv[1]), Path(sys.argv[2])

class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3 and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGINT)

train(config, runs / "pair")
try:
    train(config, runs / "stopped", callbacks=(Stop(),))
except TrainingInterrupted:
    train(config, runs / "stopped", resume=True)
"""


def history(folder: Path) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {"train": metrics["train"], "valid": metrics["valid"]}


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["window", "carry"])
def test_two_processes_train_as_one_and_resume_exactly(
    tiny_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """Guards against: means of unequally padded shares, samplers that overlap, or a stop on one process only."""
    changes = {"data.files": [str(tiny_demos)], "data.batch_size": 4, "action_head.chunk": 4, "memory.history": memory}
    changes |= {"optimizer.warmup_steps": 2, "training.max_steps": 6, "training.valid_every": 3}
    config = ExperimentConfig().change(SMALL | changes | ({"data.segment": 3} if memory == "carry" else {}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / name) for name in ("script.py", "config.yaml")] + [str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    monkeypatch.setattr(callbacks, "LOG_EVERY", 1)
    train(config, tmp_path / "single")
    single, pair = history(tmp_path / "single"), history(tmp_path / "pair")
    assert history(tmp_path / "stopped") == pair
    for kind in ("train", "valid"):
        assert len(single[kind]) == len(pair[kind]) == {"train": 6, "valid": 2}[kind]
        for one, two in zip(single[kind], pair[kind], strict=True):
            assert two == pytest.approx(one, rel=1e-4)
