"""`improve`: a policy from demos and worlds to practise in -> a better policy in a run folder, by `reinforce`.

The folder is an ordinary run folder (`save_policy`), with `resume.ckpt`, `metrics.json` and `tensorboard/` beside it. At every
checkpoint all worlds begin new episodes of recorded seeds. What follows then depends on the checkpoint alone, so that in
worlds which their seed determines a resumed run equals one that was never interrupted.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from robopolicy.components import ConfigError, require, values_of
from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.experiment.run_folder import DESCRIPTION, read_policy, read_provenance, save_policy
from robopolicy.files import replacing, write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.rollout.episodes import EpisodeWorlds, Step, finished_episode, run_steps
from robopolicy.training.callbacks import METRICS_FILE, RESUME_FILE
from robopolicy.training.reinforce import Explorer, Learner, PPOConfig, advantages
from robopolicy.training.schedules import read_schedule
from robopolicy.training.sequences import EpisodeStatistics, SequenceStorage

LOG = logging.getLogger(__name__)

PRACTICE_SEED = 1_000_000_000
"""Seed of the first episode of training seed 0; far from those of demos and of evaluations."""
SEEDS_PER_RUN = 10_000_000
"""Seeds set aside for one training seed; all stay below 2^32, which is as far as some environments take them."""
MAX_SEED = 300
BOARD = "tensorboard"
"""Folder of the curves."""


@dataclass(frozen=True)
class ImproveConfig:
    """Length, reward, evaluation and checkpoints of a run of `improve`."""

    iterations: int = 200
    """Rollouts, each followed by an update."""
    max_minutes: float | None = None
    """Time limit [min]; the run ends after the iteration in which it is reached; null: none."""
    reward: Literal["success", "env"] = "success"
    """success: 1 at the step that makes the episode a success, else 0; env: as the environment gives it."""
    checkpoint_every: int = 10
    """Iterations between two checkpoints; also part of what a run is, since worlds start again there."""
    eval_every: int | None = None
    """Iterations between two evaluations without noise, in worlds and on seeds of their own; null: none."""
    select: Literal["last", "success"] = "last"
    """Which policy the run keeps: the last one, or the one of the best evaluation."""
    seed: int = 0
    """Seed of noise, order and episodes."""

    def __post_init__(self) -> None:
        for name in ("iterations", "checkpoint_every", "eval_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be >= 1, got {value}")
        require(self.max_minutes is None or self.max_minutes > 0, f"--max-minutes must be > 0, got {self.max_minutes}")
        require(0 <= self.seed <= MAX_SEED, f"--seed must be 0 .. {MAX_SEED}, got {self.seed}")
        require(
            self.select == "last" or self.eval_every is not None,
            "--select success chooses by evaluations; give --eval-every",
        )


def improve(
    start: str | Path,
    open_worlds: Callable[[ChunkPolicy], Any],
    run_dir: str | Path,
    config: ImproveConfig,
    ppo: PPOConfig,
    *,
    evaluate: Callable[[ChunkPolicy], float] | None = None,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Path:
    """Improve the policy in the run folder `start` by practice; returns the new run folder.

    Args:
        start: run folder of a policy that succeeds now and then.
        open_worlds: makes the `EpisodeWorlds` to practise in, for the policy's keys and actions; they are closed at the end.
        run_dir: the new run folder; must not hold a run, unless it is resumed.
        config: length, reward, evaluation and checkpoints.
        ppo: the algorithm.
        evaluate: closed loop, policy -> success rate, on seeds of its own.
        resume: continue from the last checkpoint in `run_dir`.
        facts: provenance to add, such as `task`.
        device: where the policy is.

    Raises:
        ConfigError: the folder is taken, nothing is there to resume, or the warm-up saw no reward.
    """
    run_dir = Path(run_dir)
    _check_folder(run_dir, resume)
    policy, experiment = read_policy(start)
    learner = Learner(policy.to(device), ppo)
    execution = RecedingOptions(replan_every=ppo.decision_steps)
    policy.config = replace(experiment, execution=execution)
    policy.spec = replace(policy.spec, execution=values_of(execution))
    provenance = {**read_provenance(start), **(facts or {}), "improved_from": Path(start).name}
    worlds = open_worlds(policy)
    try:
        run = _Run(learner, worlds, run_dir, config, provenance, evaluate)
        if (run_dir / RESUME_FILE).exists():
            run.load()
        run.go()
        run.board.close()
    finally:
        worlds.close()
    return run_dir


def _check_folder(run_dir: Path, resume: bool) -> None:
    """Refuse a folder that is taken; one that was killed before its first checkpoint may start again with `resume`."""
    taken = [name for name in (RESUME_FILE, DESCRIPTION, METRICS_FILE) if (run_dir / name).exists()]
    if resume and not (run_dir / BOARD).exists():
        raise ConfigError(f"{run_dir} holds no {RESUME_FILE}: nothing to resume; start without --resume")
    if taken and not resume:
        raise ConfigError(
            f"{run_dir} holds a run already ({taken[0]}); resume it with --resume, or give another --run-dir"
        )


class _Run:
    """One run: where it stands, its worlds, and what is written."""

    def __init__(
        self,
        learner: Learner,
        worlds: EpisodeWorlds,
        run_dir: Path,
        config: ImproveConfig,
        provenance: Mapping[str, Any],
        evaluate: Callable[[ChunkPolicy], float] | None,
    ) -> None:
        self.learner, self.worlds, self.run_dir, self.config = learner, worlds, run_dir, config
        self.evaluate, self.provenance = evaluate, dict(provenance)
        self.anchor = read_schedule(learner.config.anchor, "--ppo.anchor")
        self.iteration, self.env_steps, self.elapsed_s = 0, 0, 0.0
        self.first_seed = PRACTICE_SEED + SEEDS_PER_RUN * config.seed
        self.next_seed = self.first_seed
        self.rewarded, self.episodes = False, 0
        self.best: dict[str, float | int] | None = None
        self.history: dict[str, list[dict[str, float | int]]] = {"improve": [], "success": []}
        self.generator = torch.Generator()
        device = learner.policy.device
        self.storage = SequenceStorage(learner.config.rollout_steps, worlds.num_envs, device)
        self.board = SummaryWriter(str(run_dir / BOARD))
        self._restart_worlds()

    def go(self) -> None:
        """All iterations that are left."""
        last = self.config.iterations - 1
        while self.iteration < self.config.iterations:
            began = time.monotonic()
            self.generator.manual_seed(1_000_003 * self.config.seed + self.iteration)
            before, figures = self._roll_out()
            warming_up = self.iteration < self.learner.config.warmup_iterations
            anchor = self.anchor(self.iteration, last)
            figures |= self.learner.update(self.storage, before, anchor, self.generator, critic_only=warming_up)
            self._check_reward()
            self.iteration += 1
            figures |= {
                "std": self.learner.log_std.detach().exp().mean().item(),
                "lr": self.learner.lr,
                "anchor": anchor,
            }
            self.elapsed_s += time.monotonic() - began
            figures["steps_per_s"] = self.storage.done.numel() / (time.monotonic() - began)
            self._record("improve", {"step": self.env_steps, "iteration": self.iteration, **figures})
            LOG.info("%s", self._line(figures, warming_up))
            out_of_time = self.config.max_minutes is not None and self.elapsed_s >= 60 * self.config.max_minutes
            done = self.iteration == self.config.iterations or out_of_time
            if self.config.eval_every and (done or self.iteration % self.config.eval_every == 0):
                self._evaluate()
            if done or self.iteration % self.config.checkpoint_every == 0:
                self._save(done)
            if done:
                return

    # -- rollout

    def _restart_worlds(self) -> None:
        """New episodes in all worlds, with fresh memories."""
        self.explorer = Explorer(self.learner, self.worlds.num_envs, self.generator)
        self.statistics = EpisodeStatistics(self.worlds.num_envs, self.learner.policy.device)
        self.succeeded = np.zeros(self.worlds.num_envs, dtype=bool)
        self.steps = run_steps(self.worlds, self.explorer, self._seeds())

    def _seeds(self) -> Iterator[int]:
        while True:
            self.next_seed += 1
            yield self.next_seed - 1

    def _roll_out(self) -> tuple[tuple[MemoryState, MemoryState], dict[str, float | int]]:
        """Fill the storage; returns the memories' states before its first step, and statistics of the ended episodes."""
        self.storage.clear()
        ppo, device = self.learner.config, self.learner.policy.device
        ended: dict[str, list[Tensor]] = {"return": [], "length": [], "success": []}
        before: tuple[MemoryState, MemoryState] | None = None
        for step in self.steps:
            before = before or self.explorer.before
            last = len(self.storage) == ppo.rollout_steps - 1
            row = {name: torch.as_tensor(getattr(step, name), device=device) for name in ("terminated", "truncated")}
            row["reward"] = torch.as_tensor(self._reward(step), dtype=torch.float32, device=device)
            row["final_value"] = torch.zeros_like(row["reward"])
            if last or step.truncated.any():
                row["final_value"] = self.explorer.value(step.next_obs, list(step.info["instruction"]))
            self.storage.append(TensorDict({**self.explorer.frame, **row}, [self.worlds.num_envs]))
            success = [self._successful(step, world) for world in range(self.worlds.num_envs)]
            found = self.statistics.add(
                row["reward"], row["terminated"] | row["truncated"], torch.tensor(success, device=device)
            )
            for name, values in found.items():
                ended[name].append(values.float())
            self.env_steps += self.worlds.num_envs
            self.rewarded = self.rewarded or bool(row["reward"].any())
            if last:
                break
        assert before is not None
        rows = self.storage.steps
        names = ("reward", "value", "final_value", "terminated", "truncated", "decides")
        estimate = advantages(**{name: rows[name] for name in names}, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)
        self.storage.add("advantage", estimate)
        figures = {name: torch.cat(values).mean().item() for name, values in ended.items() if torch.cat(values).numel()}
        count = torch.cat(ended["success"]).numel()
        self.episodes += count
        return before, {"episodes": float(count), **figures}

    def _reward(self, step: Step) -> np.ndarray:
        if self.config.reward == "env":
            return np.asarray(step.reward)
        now = np.asarray(step.info["success"], dtype=bool)
        reward = now & ~self.succeeded
        self.succeeded = (self.succeeded | now) & ~step.ended
        return reward.astype(np.float32)

    def _successful(self, step: Step, world: int) -> bool:
        return bool(step.ended[world]) and finished_episode(self.worlds, step, world).success

    def _check_reward(self) -> None:
        if self.rewarded or self.iteration + 1 < max(self.learner.config.warmup_iterations, 1):
            return
        raise ConfigError(
            f"no reward in the warm-up: 0 of {self.episodes} episodes ({self.env_steps} steps) succeeded; start from a policy "
            "that succeeds now and then (more demos, or `robopolicy dagger`), take a smaller --ppo.std or more "
            "--ppo.warmup_iterations, or give --reward env where the environment rewards progress"
        )

    # -- what is kept

    def _line(self, figures: Mapping[str, float | int], warming_up: bool) -> str:
        shown = f"{self.iteration}/{self.config.iterations}"
        rate = (
            f"{100 * figures['success']:.0f} % of {figures['episodes']:.0f}"
            if "success" in figures
            else "no episode ended"
        )
        parts = [f"{shown:<9} success {rate}", f"return {figures.get('return', float('nan')):.2f}"]
        parts += [f"length {figures.get('length', float('nan')):.0f}", f"value error {figures['value_error']:.3f}"]
        if warming_up:
            parts.append("warm-up of the critic")
        else:
            parts += [f"KL {figures['kl']:.4f}", f"from the start {figures['anchor_kl']:.3f}"]
            parts += [f"entropy {figures['entropy']:.2f}", f"std {figures['std']:.3f}"]
        return "   ".join([*parts, f"{figures['steps_per_s']:.0f} steps/s"])

    def _evaluate(self) -> None:
        if self.evaluate is None:
            raise ConfigError("--eval-every needs worlds to evaluate in; leave it out")
        rate = float(self.evaluate(self.learner.policy))
        self._record("success", {"step": self.env_steps, "iteration": self.iteration, "rate": rate})
        LOG.info("evaluated %.1f %% without noise after %d steps", 100 * rate, self.env_steps)
        if self.config.select == "success" and (self.best is None or rate >= self.best["rate"]):
            self.best = {"step": self.env_steps, "rate": rate}
            self._keep()

    def _record(self, kind: str, row: dict[str, float | int]) -> None:
        self.history[kind].append(row)
        for name, value in row.items():
            if name not in ("step", "iteration"):
                self.board.add_scalar(f"{kind}/{name}", value, int(row["step"]))

    def _keep(self) -> None:
        practice = {"seeds": [self.first_seed, self.next_seed - 1], "env_steps": self.env_steps}
        save_policy(self.learner.policy, self.run_dir, {**self.provenance, "practice": practice})

    def _save(self, finished: bool) -> None:
        """Write policy, metrics and resume file, the latter last; then all worlds begin again."""
        if self.config.select == "last":
            self._keep()
        metrics = {
            "steps": self.env_steps,
            "iterations": self.iteration,
            "finished": finished,
            "wall_s": round(self.elapsed_s, 2),
            "best": self.best,
            "provenance": self.provenance,
            "ppo": asdict(self.learner.config),
            **self.history,
        }
        write_file(self.run_dir / METRICS_FILE, json.dumps(metrics, indent=1) + "\n")
        saved = {
            "options": self._options(),
            "numbers": {name: getattr(self, name) for name in NUMBERS},
            "best": self.best,
            "history": self.history,
            "learner": self.learner.state_dict(),
            "optimizers": [self.learner.optimizer.state_dict(), self.learner.critic_optimizer.state_dict()],
        }
        with replacing(self.run_dir / RESUME_FILE) as own:
            torch.save(saved, own)
        self._restart_worlds()

    def load(self) -> None:
        """Continue from the resume file."""
        saved = torch.load(self.run_dir / RESUME_FILE, map_location=self.learner.policy.device, weights_only=True)
        for name, value in self._options().items():
            before = saved["options"].get(name)
            if before != value:
                raise ConfigError(
                    f"--{name} is {value} but the run in {self.run_dir} has {before}; a resumed run keeps it"
                )
        for name, value in saved["numbers"].items():
            setattr(self, name, value)
        self.best, self.history = saved["best"], saved["history"]
        self.learner.load_state_dict(saved["learner"])
        self.learner.optimizer.load_state_dict(saved["optimizers"][0])
        self.learner.critic_optimizer.load_state_dict(saved["optimizers"][1])
        self._restart_worlds()

    def _options(self) -> dict[str, Any]:
        """What a resumed run must have alike."""
        own = {name: getattr(self.config, name) for name in ("reward", "checkpoint_every", "seed")}
        ppo = {f"ppo.{name}": value for name, value in asdict(self.learner.config).items()}
        return {**own, "num_envs": self.worlds.num_envs, **ppo}


NUMBERS = ("iteration", "env_steps", "elapsed_s", "next_seed", "rewarded", "episodes")
