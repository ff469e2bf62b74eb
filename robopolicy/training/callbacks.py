"""Lightning callbacks around the training steps: validation, selection of the best policy, checkpoints, exact resume."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed

from robopolicy.experiment.config import TrainingConfig
from robopolicy.files import replacing, write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.training.module import PolicyTraining
from robopolicy.training.process import Stop
from robopolicy.training.run_dir import METRICS_FILE, RESUME_FILE

LOG_EVERY = 25
"""Optimizer steps between two rows of the training log."""


class TrainingDivergedError(ValueError):
    """The loss is NaN or infinite; the policy and the resume file saved earlier are unchanged."""


class StepTimer:
    """Time per batch, and the share of it spent waiting for batches; the first batch, which may compile, is left out."""

    def __init__(self) -> None:
        self.batches = 0
        self.data_s = 0.0
        self.all_s = 0.0
        self._began: tuple[float, float] | None = None

    @property
    def data_fraction(self) -> float:
        """Share of the time spent waiting for batches."""
        return self.data_s / max(self.all_s, 1e-9)

    @property
    def step_ms(self) -> float:
        """Time per batch [ms], waiting and Lightning's loop included."""
        return 1e3 * self.all_s / max(self.batches, 1)

    def start(self, waited_s: float) -> None:
        """Start timing a batch; `waited_s` is the loader's total waiting time so far [s]."""
        self._began = time.perf_counter(), waited_s

    def stop(self, waited_s: float) -> None:
        """Stop timing the batch, so that validation and evaluation after it are not counted."""
        if self._began is not None:
            self.all_s += time.perf_counter() - self._began[0]
            self.data_s += waited_s - self._began[1]
            self.batches += 1


class RandomState(Callback):
    """Saves torch's random state of every process, and restores it before the first step of a resumed run.

    Lightning saves the state of the loader and of its loops only; dropout and augmentation would differ after a resume.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states, one entry per process."""
        state = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        return {"processes": gathered(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first step, since starting up draws random numbers."""
        self._loaded = state_dict["processes"]

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Seed each process differently."""
        torch.manual_seed(self.seed + trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Restore the state before the first step."""
        if self._loaded is None:
            return
        if len(self._loaded) != trainer.world_size:
            raise ValueError(
                f"the run was saved by {len(self._loaded)} processes and is resumed by {trainer.world_size}; "
                f"start {len(self._loaded)} processes"
            )
        state, self._loaded = self._loaded[trainer.global_rank], None
        torch.set_rng_state(state["cpu"].cpu())
        if torch.cuda.is_available() and state["cuda"]:
            torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])


class RunKeeper(Callback):
    """Measures the policy during training, saves the best or last one in the run folder, and writes the resume file.

    After each optimizer step, in this order: log, validate, evaluate in closed loop, save the policy if it is the best, write
    the resume file, stop. Lightning's own validation would come after the checkpoint, and a resumed run would skip it.

    Args:
        run_dir: folder of the run.
        save: writes a policy and the run's provenance into the run folder.
        valid_batches: returns the held-out batches.
        settings: how often to measure and save, and which policy to keep.
        evaluate: policy -> success rate in closed loop, called every `eval_every` steps; None: no such evaluation.
        stop: set by a signal to end the training.
        facts: further entries of `metrics.json`.
    """

    def __init__(
        self,
        run_dir: Path,
        save: Callable[[ChunkPolicy], Any],
        valid_batches: Callable[[], Iterable[Any]],
        settings: TrainingConfig,
        evaluate: Callable[[ChunkPolicy], float] | None,
        stop: Stop,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.run_dir, self.save, self.valid_batches = run_dir, save, valid_batches
        self.settings, self.evaluate, self.stop = settings, evaluate, stop
        self.facts = dict(facts or {})
        self.history: dict[str, list[dict[str, float | int]]] = {"train": [], "valid": [], "success": []}
        self.best: dict[str, float | int] | None = None
        self.timer = StepTimer()
        self.finished = False
        self.step = 0
        self._elapsed_s = 0.0
        self._carried: list[dict[str, torch.Tensor] | None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The run's history, best step, training time and carried memory states."""
        return {"history": self.history, "best": self.best, "elapsed_s": self._elapsed_s, "carried": self._carried}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.history, self.best = state_dict["history"], state_dict["best"]
        self._elapsed_s, self._carried = state_dict["elapsed_s"], state_dict["carried"]

    def on_train_start(self, trainer: Trainer, pl_module: PolicyTraining) -> None:
        """Continue the clock and the carried states of an interrupted run."""
        self.step = trainer.global_step
        pl_module.schedule.start(self._elapsed_s)
        if self._carried is not None and (mine := self._carried[trainer.global_rank]) is not None:
            pl_module.carried = MemoryState.load({name: part.to(pl_module.device) for name, part in mine.items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: PolicyTraining, *_: Any) -> None:
        """Log, validate, evaluate and save, if due after this step."""
        loader: Any = trainer.train_dataloader
        self.timer.stop(loader.waited_s)
        if trainer.global_step != self.step:  # equal while gradients are accumulated
            self.step = trainer.global_step
            self._after_step(trainer, pl_module, self.step)
        self.timer.start(loader.waited_s)

    def _after_step(self, trainer: Trainer, pl_module: PolicyTraining, step: int) -> None:
        done = pl_module.progress() >= 1
        self.stop.requested = stopping = bool(pl_module.from_first(float(self.stop.requested)))
        settings = self.settings
        save_due = done or stopping or step % settings.checkpoint_every == 0
        valid_due = done or step % settings.valid_every == 0
        eval_due = settings.eval_every is not None and (done or step % settings.eval_every == 0)
        if step % LOG_EVERY == 0 or save_due or valid_due or eval_due:
            self._log_training(trainer, pl_module, step)
        if valid_due or eval_due:
            # Restores the random state, so that measuring more often does not change the training.
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                if valid_due:
                    self._validate(trainer, pl_module, step)
                if eval_due:
                    self._evaluate(trainer, pl_module, step)
        if settings.select == "last" and save_due:
            self._keep(trainer, pl_module, {"step": step})
        self.finished = done
        if save_due:
            self._save_resume(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or done or stopping

    def _log_training(self, trainer: Trainer, module: PolicyTraining, step: int) -> None:
        terms = module.tally.take()
        if bad := [name for name, value in terms.items() if not math.isfinite(value)]:
            raise TrainingDivergedError(
                f"{', '.join(bad)} became {terms[bad[0]]} before step {step}; lower --optimizer.lr, or look for extreme "
                f"values with `robopolicy check`. The policy in {self.run_dir} is from an earlier step"
            )
        if terms:
            self._record(trainer, "train", {"step": step, **terms})

    def _validate(self, trainer: Trainer, module: PolicyTraining, step: int) -> None:
        with trainer.precision_plugin.val_step_context():
            terms = module.validate(self.valid_batches())
        if not terms:
            return
        self._record(trainer, "valid", {"step": step, **terms})
        if self.settings.select == "valid_loss" and (self.best is None or terms["loss"] < self.best["loss"]):
            self._keep(trainer, module, {"step": step, "loss": terms["loss"]})

    def _evaluate(self, trainer: Trainer, module: PolicyTraining, step: int) -> None:
        rate = -1.0
        if trainer.is_global_zero and self.evaluate is not None:
            was_training = module.evaluated.training
            with torch.no_grad():
                rate = float(self.evaluate(module.evaluated.eval()))
            module.evaluated.train(was_training)
        rate = module.from_first(rate)
        self._record(trainer, "success", {"step": step, "rate": rate})
        if self.settings.select == "success" and (self.best is None or rate >= self.best["rate"]):
            self._keep(trainer, module, {"step": step, "rate": rate})

    def _record(self, trainer: Trainer, kind: str, row: dict[str, float | int]) -> None:
        self.history[kind].append(row)
        for logger in trainer.loggers:
            named = {f"{kind}/{name}": value for name, value in row.items() if name != "step"}
            logger.log_metrics(named, step=int(row["step"]))

    def _keep(self, trainer: Trainer, module: PolicyTraining, best: dict[str, float | int]) -> None:
        self.best = best
        if trainer.is_global_zero:
            self.save(module.evaluated)

    def _save_resume(self, trainer: Trainer, module: PolicyTraining) -> None:
        """Write the resume file, atomically, and `metrics.json`."""
        self._elapsed_s = module.schedule.elapsed_s
        self._carried = gathered(None if module.carried is None else module.carried.state_dict())
        path = self.run_dir / RESUME_FILE
        with replacing(path) if trainer.is_global_zero else nullcontext(path) as own:  # only the first process writes
            trainer.save_checkpoint(own)
        if trainer.is_global_zero:
            metrics = {
                **self.facts,
                "steps": trainer.global_step,
                "finished": self.finished,
                "wall_s": round(self._elapsed_s, 2),
                "step_ms": round(self.timer.step_ms, 3),
                "data_fraction": round(self.timer.data_fraction, 5),
                "best": self.best,
                **self.history,
            }
            write_file(self.run_dir / METRICS_FILE, json.dumps(metrics, indent=1) + "\n")
        trainer.strategy.barrier()


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in order of rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
