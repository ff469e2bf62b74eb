"""`train`: demos and a config in, a run folder with a policy out.

The run folder is the policy's folder (`save_policy`), with `resume.ckpt`, `metrics.json`, `train.lock` and `tensorboard/`
beside it.
"""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from robopolicy.experiment.building import build_policy
from robopolicy.experiment.config import ConfigError, ExperimentConfig
from robopolicy.experiment.reading import config_to_dict, flat
from robopolicy.experiment.run_folder import CONFIG, DESCRIPTION, save_policy
from robopolicy.files import remove_unfinished, require_regular, write_file
from robopolicy.heap import keep_freed_memory
from robopolicy.model.encoders.conv import ConvOptions
from robopolicy.model.policy import ChunkPolicy
from robopolicy.training.augmentations import AugmentationInputs, make_augmentation
from robopolicy.training.callbacks import METRICS_FILE, RESUME_FILE, RandomState, RunKeeper, Stop, read_resume
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.groups import GroupData, GroupObjective, GroupPolicies, GroupTraining
from robopolicy.training.module import PolicyTraining, Schedule
from robopolicy.training.objective import Objective
from robopolicy.training.progress import ConsoleProgress, LogProgress
from robopolicy.training.start import Start, open_start, take_over
from robopolicy.training.timing import StepTimer

try:
    import fcntl
except ImportError:  # not on Windows: two trainings into one folder are not noticed there
    fcntl = None

LOG = logging.getLogger(__name__)

FREE_TO_CHANGE = (
    "task",
    "execution.",
    "data.placement",
    "data.num_workers",
    *(f"training.{name}" for name in ("max_", "valid_every", "checkpoint_every", "eval_", "select")),
)
"""Options that may differ when a run is resumed; any other change is refused."""

LIGHTNING_ADVICE = (
    "You passed in a `val_dataloader` but have no `validation_step`",  # RunKeeper validates
    r"Found \d+ module\(s\) in eval mode",  # a frozen backbone
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)
"""Beginnings of warnings about deliberate choices, or about code that isn't ours."""

LOCK_FILE = "train.lock"
"""Locked while a training writes into the run folder; left behind, it marks the folder as a training's."""


class TrainingInterrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C, SIGTERM or SIGHUP; the message says how to continue."""


def train(
    config: ExperimentConfig,
    run_dir: str | Path,
    evaluate: Callable[[ChunkPolicy], float] | None = None,
    resume: bool = False,
    start: Start | str | Path | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> Path:
    """Train a policy on demonstrations; returns the run folder, which `load_policy` reads.

    Progress is logged, and printed where nobody has configured logging. From here on the process keeps memory that it frees
    (`robopolicy.heap`): 1.5 times as fast from images on a CPU.

    Args:
        config: the experiment.
        run_dir: where policy, logs and resume file go; must not hold a run yet, unless it is resumed. A run that was
            interrupted before its first resume file starts again, with and without `resume`.
        evaluate: closed loop, policy -> success rate, called every `training.eval_every` steps.
        resume: continue the run in `run_dir`, exactly as if it had not been interrupted.
        start: run folder whose weights to start from, with its statistics and vocabulary unless it says otherwise; a
            resumed run keeps its own.
        callbacks: further Lightning callbacks, called before the run's own.

    Raises:
        ConfigError: the run folder is taken or another training writes into it, there is nothing to resume, or the config
            contradicts itself.
        TrainingDivergedError: the loss is no longer finite.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP; `resume` continues from there.
    """
    run_dir = Path(run_dir)
    _check_run(config, run_dir, resume)
    if (evaluate is None) != (config.training.eval_every is None):
        raise ConfigError("--training.eval_every and a closed-loop evaluation belong together; give both or neither")
    if isinstance(start, str | Path):
        start = Start(str(start))
    if resume:
        start = Start.read(run_dir)
    with _visible_log(), _stop_on_signal() as stop:
        module, data = _prepare(config, evaluate, start)
        with locked(run_dir):
            _check_run(config, run_dir, resume)  # another training may have ended meanwhile
            if start is not None and rank_zero_only.rank == 0:
                start.write(run_dir)
            keeper = _fit(module, data, run_dir, evaluate, callbacks, stop)
        if stop.requested and not keeper.finished:
            raise TrainingInterrupted(f"stopped after step {keeper.step}; continue {run_dir} with --resume")
        _report(keeper, config)
    return run_dir


def _prepare(
    config: ExperimentConfig, evaluate: Callable[[ChunkPolicy], float] | None, start: Start | None
) -> tuple[PolicyTraining, DemoDataModule | GroupData]:
    """The demos, opened, and an untrained policy for them, or one that begins as `start` says."""
    seed_everything(config.training.seed, verbose=False)
    keep_freed_memory()
    if config.data.groups:
        return _prepare_groups(config, evaluate, start)
    data = DemoDataModule(config)
    data.setup("fit")
    _check_selection(config, evaluate, held_out=len(data.val_dataloader()) > 0)
    if start is None:
        return make_training(config, data, build_policy(config, data.facts)), data
    begun = open_start(start, data.provenance["token_encoder"])
    policy = build_policy(config, replace(data.facts, vocabulary=begun.vocabulary))
    take_over(policy, begun, start)
    if start.statistics == "keep":
        data.use_normalizer(begun.action_normalizer)
    return make_training(config, data, policy), data


def _prepare_groups(
    config: ExperimentConfig, evaluate: Callable[[ChunkPolicy], float] | None, start: Start | None
) -> tuple[GroupTraining, GroupData]:
    """The demos of several robots, opened, and untrained policies for them."""
    if start is not None:
        raise ConfigError("--start with --data.groups: groups begin from random weights; leave --start out")
    if evaluate is not None:
        raise ConfigError("--training.eval_every with --data.groups; evaluate afterwards, with eval --group NAME")
    data = GroupData(config)
    data.setup("fit")
    _check_selection(config, evaluate, held_out=len(data.val_dataloader()) > 0)
    policies = GroupPolicies.build(data)
    modules = {
        name: make_training(each.experiment, each, cast(ChunkPolicy, policies.members[name]))
        for name, each in data.groups.items()
    }
    weights = {name: group.weight for name, group in config.data.groups.items()}
    training = GroupTraining(
        policies,
        GroupObjective({name: module.objective for name, module in modules.items()}, weights),
        _schedule(config),
        config.optimizer,
        {name: module.augmentation for name, module in modules.items()},
    )
    return training, data


def _fit(
    module: PolicyTraining,
    data: DemoDataModule | GroupData,
    run_dir: Path,
    evaluate: Callable[[ChunkPolicy], float] | None,
    callbacks: tuple[Callback, ...],
    stop: Stop,
) -> RunKeeper:
    """Train to the end, or to the stop that a signal asks for; from the resume file, where there is one."""
    config, timer, provenance = data.experiment, StepTimer(), data.provenance
    parameters = sum(parameter.numel() for parameter in module.policy.parameters())

    def save(kept: Any) -> None:
        """Write the policy, or those of the groups."""
        if config.data.groups:
            kept.save(run_dir, provenance)
        else:
            save_policy(kept, run_dir, provenance)

    keeper = RunKeeper(
        run_dir,
        timer,
        save,
        data.val_dataloader,
        config.training,
        evaluate,
        stop,
        facts={"parameters": parameters, "provenance": provenance},
    )
    progress = (ConsoleProgress if sys.stdout.isatty() else LogProgress)(keeper, config.training.max_steps)
    if rank_zero_only.rank == 0:
        write_file(run_dir / CONFIG, yaml.safe_dump(config_to_dict(config), sort_keys=False))
    resume = run_dir / RESUME_FILE
    if resume.exists():
        read_resume(resume, ("state_dict", "optimizer_states", "loops"))
    with quiet_lightning():
        own = [RandomState(config.training.seed), *callbacks, keeper, progress, timer]
        trainer = make_trainer(config, run_dir, own)
        stop.training = True
        trainer.fit(module, datamodule=data, ckpt_path=resume if resume.exists() else None, weights_only=True)
    return keeper


def make_trainer(config: ExperimentConfig, run_dir: Path, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer without the features that cost time in every step; in one process, or those of torchrun or SLURM."""
    cuda = torch.cuda.is_available()
    return Trainer(
        accelerator="gpu" if cuda else "cpu",
        precision="bf16-mixed" if _in_bf16(config, cuda) else "32-true",
        max_steps=config.training.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.optimizer.accumulate,
        callbacks=callbacks,
        logger=TensorBoardLogger(run_dir, name="", version="tensorboard", default_hp_metric=False),
        log_every_n_steps=0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **_processes(cuda, unused=hasattr(config.encoder, "finetune")),
    )


def _in_bf16(config: ExperimentConfig, cuda: bool) -> bool:
    """Whether matrix products and convolutions are computed in bfloat16."""
    if config.training.precision != "auto":
        return config.training.precision == "bf16"
    # A CPU that computes in bfloat16 runs convolutions twice as fast; small linear layers gain nothing.
    return cuda or (isinstance(config.encoder, ConvOptions) and torch.cpu._is_avx512_bf16_supported())


def _processes(cuda: bool, unused: bool) -> dict[str, Any]:
    """Processes per node and number of nodes, from the environment variables of torchrun or srun.

    `unused` says that the loss may not depend on some trained weights, such as a tower's own pooling that nothing reads.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local, world = int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
    elif int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in env:
        world, nodes = int(env["SLURM_NTASKS"]), int(env["SLURM_STEP_NUM_NODES"])
        local = world // nodes
    else:
        return {"devices": 1}
    ddp = DDPStrategy(
        process_group_backend="nccl" if cuda else "gloo", gradient_as_bucket_view=True, find_unused_parameters=unused
    )
    return {"devices": local, "num_nodes": world // local, "strategy": ddp}


def make_training(config: ExperimentConfig, data: DemoDataModule, policy: ChunkPolicy) -> PolicyTraining:
    """The policy under training: its objective, schedule, optimizer settings and augmentation, as the config says."""
    seen = [key for key in data.obs_statistics if key in policy.obs]
    inputs = AugmentationInputs(
        cameras=policy.cameras,
        obs_mean={key: torch.as_tensor(data.obs_statistics[key].mean).float() for key in seen},
        obs_std={key: torch.as_tensor(data.obs_statistics[key].std).float() for key in seen},
    )
    objective = Objective(config.losses, config.normalization, policy, data.privileged, data.obs_statistics)
    augmentation = make_augmentation(config.augmentation, inputs)
    return PolicyTraining(policy, objective, _schedule(config), config.optimizer, augmentation)


def _schedule(config: ExperimentConfig) -> Schedule:
    training, optimizer = config.training, config.optimizer
    return Schedule(training.max_steps, optimizer.warmup_steps, optimizer.min_lr_scale, training.max_minutes)


def _check_run(config: ExperimentConfig, run_dir: Path, resume: bool) -> None:
    taken = [name for name in (RESUME_FILE, DESCRIPTION, METRICS_FILE) if (run_dir / name).exists()]
    # Killed before its first resume file: there is nothing that starting again would lose.
    cut_short = (run_dir / LOCK_FILE).exists() and RESUME_FILE not in taken
    if not resume:
        if taken and not cut_short:
            raise ConfigError(
                f"{run_dir} holds a run already ({taken[0]}); continue it with --resume, or give another --run-dir"
            )
        return
    if cut_short:
        return
    if RESUME_FILE not in taken:
        raise ConfigError(f"{run_dir} holds no {RESUME_FILE}: nothing to resume; train without --resume")
    before = flat(yaml.safe_load((run_dir / CONFIG).read_text()))
    now = flat(config_to_dict(config))
    changed = [key for key in now if before.get(key) != now[key] and not key.startswith(FREE_TO_CHANGE)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"--{key} is {now[key]} but the run in {run_dir} began with {before.get(key)}; resume it with the same value"
        )


def _check_selection(config: ExperimentConfig, evaluate: Callable[[ChunkPolicy], float] | None, held_out: bool) -> None:
    if config.training.select == "valid_loss" and not held_out:
        raise ConfigError(
            "--training.select valid_loss but no demo is held out; use --training.select last, or a larger "
            "--data.valid_fraction"
        )
    if config.training.select == "success" and (evaluate is None or config.training.eval_every is None):
        raise ConfigError("--training.select success needs closed-loop evaluations; give --eval-every and --task")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advertising, and its advice about choices made on purpose."""
    before = {logger: logger.level for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))}
    for logger in before:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in LIGHTNING_ADVICE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


@contextmanager
def _visible_log() -> Iterator[None]:
    """Print what this package logs from INFO on, where nobody has configured logging: in a notebook or a script."""
    logger = logging.getLogger("robopolicy")
    if logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """The run folder, created if missing, for this training alone; other processes of the same training take no lock.

    What a killed one left unfinished is removed.

    Raises:
        ConfigError: another training writes into it.
        OSError: a link or something else is at the lock's name; it is not followed.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if rank_zero_only.rank != 0 or fcntl is None:
        yield
        return
    require_regular(run_dir / LOCK_FILE)
    lock = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{run_dir}: another training writes into it; wait for it, or give another --run-dir"
            ) from None
        remove_unfinished(run_dir)
        yield
    finally:
        os.close(lock)


@contextmanager
def _stop_on_signal() -> Iterator[Stop]:
    """The first Ctrl-C, SIGTERM or SIGHUP ends training after the step, with a resume file; the second one at once."""
    stop = Stop()

    def request(*_: Any) -> None:
        if stop.requested or not stop.training:
            raise KeyboardInterrupt("interrupted" if stop.training else "stopped before the first step; start it again")
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(keeper: RunKeeper, config: ExperimentConfig) -> None:
    training = config.training
    if training.max_minutes is not None and keeper.step < training.max_steps:
        LOG.warning(
            "stopped by --training.max_minutes %g after %d of %d steps: another machine, or a less busy one, trains further",
            training.max_minutes,
            keeper.step,
            training.max_steps,
        )
    timer = keeper.timer
    best = "" if keeper.best is None else "   kept " + " ".join(f"{k} {v:.5g}" for k, v in keeper.best.items())
    LOG.info(
        "trained   %d steps, %.2f ms per batch, %.2f %% of it waiting for data%s",
        keeper.step,
        timer.step_ms,
        100 * timer.data_fraction,
        best,
    )
