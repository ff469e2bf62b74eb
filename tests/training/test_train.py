"""A run folder holds the policy, and a stopped run resumes exactly."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from robopolicy.experiment import ConfigError, ExperimentConfig, load_policy, read_provenance
from robopolicy.experiment.config import TrainingConfig
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.train import locked, train
from tests.full_disk import full_disk
from tests.small_runs import changed, metrics, run, small_config, weights


@pytest.fixture
def config(tiny_demos: Path) -> ExperimentConfig:
    return small_config(tiny_demos)


def test_a_run_folder_is_a_policy_that_acts_with_its_figures_beside_it(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """Guards against: a run whose policy can't be loaded, or whose provenance is lost."""
    folder = train(config, tmp_path / "run")
    policy = load_policy(folder)
    obs = {key: torch.zeros(2, spec.width) for key, spec in policy.obs.items()}
    actions, _ = policy.act({**obs, "instruction": "lift the red cube"}, policy.initial_state(2))
    assert actions.shape == (2, 2, 7)
    figures = metrics(folder)
    assert figures["steps"] == 8
    assert figures["finished"]
    assert [row["step"] for row in figures["valid"]] == [4, 8]
    assert {"loss", "loss_arm", "loss_gripper"} <= set(figures["train"][-1])
    assert figures["best"]["loss"] == min(row["loss"] for row in figures["valid"])
    assert figures["provenance"]["demo_seeds"] == read_provenance(folder)["demo_seeds"] == [0, 1, 2, 3, 4]
    assert 0 <= figures["data_fraction"] < 1
    assert list((folder / "tensorboard").glob("events*"))
    assert not list(folder.glob("*.partial"))


def test_training_learns(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: gradients that never reach the weights, which leave every other test of this file green."""
    sizes = {"encoder.width": 32, "encoder.hidden": 32, "memory.hidden": 64, "action_head.widths": [64]}
    calm = replace(config, augmentation={}).change(sizes | {"memory.dropout": 0.0, "memory.layers": 1})
    calm = calm.change({"optimizer.lr": 1e-2, "optimizer.warmup_steps": 5})
    losses = run(changed(calm, max_steps=150, valid_every=150), tmp_path / "run")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("stop_at", [3, 4, 5])
def test_a_run_stopped_by_ctrl_c_goes_on_exactly(config: ExperimentConfig, tmp_path: Path, stop_at: int) -> None:
    """Guards against: order, noise or average restarted by a resume, mid-epoch, at a validation or at an epoch's end."""
    whole = run(config, tmp_path / "whole")
    first = run(config, tmp_path / "stopped", stop_at=(stop_at,))
    rest = run(config, tmp_path / "stopped", resume=True)
    assert len(first) == stop_at
    assert first + rest == whole
    assert torch.equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    figures = [metrics(tmp_path / name) for name in ("stopped", "whole")]
    assert figures[0]["valid"] == figures[1]["valid"]


@pytest.mark.parametrize("kind", ["carry", "accumulate"])
def test_carried_states_and_accumulation_resume_exactly_too(
    config: ExperimentConfig, tmp_path: Path, kind: str
) -> None:
    """Guards against: a carried state that is lost, or half an accumulated gradient counted as a step."""
    if kind == "carry":
        config = config.change({"memory.history": "carry", "data.batch_size": 2, "data.segment": 3})
    else:
        config = config.change({"optimizer.accumulate": 2})
    whole = run(config, tmp_path / "whole")
    stopped = run(config, tmp_path / "stopped", stop_at=(4,)) + run(config, tmp_path / "stopped", resume=True)
    assert stopped == whole


def test_a_run_is_neither_overwritten_nor_resumed_as_another(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: yesterday's run overwritten by a forgotten --run-dir, or resumed with another size."""
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    train(changed(config, max_steps=2), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--memory\.hidden is 16 but the run .* began with 8"):
        train(config.change({"memory.hidden": 16}), tmp_path / "run", resume=True)
    train(changed(config, max_steps=4), tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run")["steps"] == 4
    train(changed(config, max_steps=4), tmp_path / "run", resume=True)


def test_a_selection_that_cannot_be_made_is_refused_before_anything_is_written(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """Guards against: selection by what is never measured, which would keep no policy at all, found out hours later."""
    with pytest.raises(ConfigError, match="--eval-every"):
        train(changed(config, select="success"), tmp_path / "run")
    with pytest.raises(ConfigError, match="all_of_them"):
        train(config.change({"data.train_filter": "all_of_them"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_version_with_fewer_options_is_resumed(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: an update that adds an option, after which no interrupted run can be continued."""
    run(config, tmp_path, stop_at=(4,))
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del saved["data"]["frame_stride"], saved["memory"]["dropout"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match=r"--memory.dropout is 0.2 but the run in .* began with 0.0"):
        train(config, tmp_path, resume=True)
    saved["memory"]["dropout"] = 0.2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    train(config, tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_its_first_resume_file_starts_again(
    config: ExperimentConfig, tmp_path: Path, resume: bool
) -> None:
    """Guards against: a folder with a policy and no resume file, refused by both commands for ever."""
    train(config, tmp_path / "whole")
    train(changed(config, max_steps=4), tmp_path / "killed")
    (tmp_path / "killed" / "resume.ckpt").unlink()
    train(config, tmp_path / "killed", resume=resume)
    assert torch.equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("free_bytes", [200, 6_000, 30_000])
def test_a_run_that_met_a_full_disk_goes_on(config: ExperimentConfig, tmp_path: Path, free_bytes: int) -> None:
    """Guards against: a run folder that neither command takes, after a disk that was full at any of its files."""
    train(config, tmp_path / "whole")
    with full_disk(free_bytes), pytest.raises(OSError, match="File too large"):
        train(config, tmp_path / "full")
    train(config, tmp_path / "full", resume=(tmp_path / "full" / "resume.ckpt").exists())
    assert torch.equal(weights(tmp_path / "full"), weights(tmp_path / "whole"))


def test_a_folder_that_no_training_made_is_not_overwritten(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: a converted policy taken for an interrupted training and trained over."""
    train(config, tmp_path / "run")
    for name in ("resume.ckpt", "train.lock"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config, tmp_path / "run")


def test_two_trainings_do_not_share_a_folder(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: two trainings that both end with exit code 0 and leave a mixture of both."""

    class Second(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            with pytest.raises(ConfigError, match="another training run is writing into it"):
                train(config, tmp_path / "run", resume=True)
            raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        train(config, tmp_path / "run", callbacks=(Second(),))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGINT twice"])
def test_a_signal_before_the_first_step_is_one_line(tiny_demos: Path, tmp_path: Path, name: str) -> None:
    """Guards against: a traceback for a Ctrl-C, or an impatient second one, while the demos are read."""
    sent = name.split()
    program = (
        "import os, signal, sys\n"
        "from robopolicy.training import train as module\n"
        "from robopolicy.cli import main\n"
        f"module.build_policy = lambda *_: [os.kill(os.getpid(), signal.{name.split()[0]}) for _ in {sent}]\n"
        "sys.exit(main())\n"
    )
    words = ["train", "--data.files", str(tiny_demos), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "stopped before the first step; run it again"
    assert not (tmp_path / "run").exists()


def test_an_evaluation_without_its_interval_is_refused(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: a closed-loop evaluation that is given and never run."""
    with pytest.raises(ConfigError, match="belong together"):
        train(config, tmp_path / "run", evaluate=lambda policy: 1.0)


def test_a_planted_lock_is_not_written_through_and_leftovers_are_removed(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """Guards against: a stranger's run folder whose `train.lock` is a link to the user's own file, which was emptied."""
    victim, run_dir = tmp_path / "precious", tmp_path / "run"
    victim.write_text("precious")
    run_dir.mkdir()
    (run_dir / "train.lock").symlink_to(victim)
    with pytest.raises(OSError, match="is a symbolic link"):
        train(config, run_dir)
    assert victim.read_text() == "precious"
    (run_dir / "train.lock").unlink()
    (run_dir / ".policy-0123456789abcdef.unfinished.safetensors").write_bytes(b"half")
    with locked(run_dir):
        assert [path.name for path in run_dir.iterdir()] == ["train.lock"]


def test_passes_set_the_number_of_steps_and_a_resumed_run_keeps_it(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: a fixed number of steps, which is too few for many demos; another number after an interruption."""
    planned = changed(config, max_steps=None, passes=2.0, min_steps=7)
    whole = run(planned, tmp_path / "whole")
    first = run(planned, tmp_path / "stopped", stop_at=(5,))
    rest = run(planned, tmp_path / "stopped", resume=True)
    data = DemoDataModule(config)
    data.setup("fit")
    assert len(whole) == max(7, math.ceil(2 * data.frames / (config.data.batch_size * data.segment)))
    assert [*first, *rest] == whole
    assert torch.equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["training"]["max_steps"] is None


def test_the_steps_of_passes_keep_to_both_limits() -> None:
    """Guards against: few demos that train for a handful of steps; `--max-steps` without effect."""
    training = TrainingConfig(max_steps=None, passes=10.0, min_steps=50)
    assert training.planned(0.1).max_steps == 100
    assert training.planned(1.0).max_steps == 50
    assert replace(training, max_steps=30).planned(0.1).max_steps == 30
    assert TrainingConfig(max_steps=7).planned(0.1).max_steps == 7
    with pytest.raises(ConfigError, match="max_steps null without"):
        TrainingConfig(max_steps=None)
    with pytest.raises(ConfigError, match="min_steps 5 without"):
        TrainingConfig(min_steps=5)
