"""`improve`: fine-tunes a policy by reinforcement learning (`robopolicy.training.reinforce`) and writes a new run folder.

The folder is an ordinary run folder (`save_policy`) that also holds `resume.ckpt`, `metrics.json` and `tensorboard/`. At
every checkpoint all worlds begin new episodes with recorded seeds, so that the rest of the run depends on the checkpoint
alone: if the seed of an episode determines it, a resumed run equals one that was never interrupted.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from robopolicy.components import ConfigError, Options, option, require, values_of
from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.experiment.run_folder import read_policy, read_provenance, save_policy
from robopolicy.files import replacing, write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.episodes import EpisodeWorlds
from robopolicy.training.reinforce import Learner, PPOConfig, advantages
from robopolicy.training.rollouts import Collector, Reward
from robopolicy.training.run_dir import METRICS_FILE, RESUME_FILE, is_resumed, locked, read_resume
from robopolicy.training.schedules import read_schedule

LOG = logging.getLogger(__name__)

TRAINING_SEED = 1_000_000_000
"""Seed of the first episode for training seed 0; far from the seeds of demos and of evaluations."""
SEEDS_PER_RUN = 10_000_000
"""Episode seeds reserved for each training seed."""
MAX_SEED = 300
"""Largest training seed: all episode seeds stay below 2^32, the limit of some environments."""
BOARD = "tensorboard"
"""Folder for TensorBoard's curves, in the run folder."""
VIDEOS = "videos"
"""Folder for videos, in the run folder; it has a subfolder for each evaluation."""


@dataclass(frozen=True)
class ImproveConfig(Options):
    """Length, reward, evaluation and checkpoints of a run of `improve`."""

    iterations: int = option(400, ">= 1")
    """Number of iterations; each is a rollout followed by an update."""
    max_minutes: float | None = option(None, "> 0")
    """Time limit [min]; the run ends after the iteration that exceeds it; null: none."""
    reward: Reward = "auto"
    """success: 1 at the step that makes the episode a success, else 0; progress: also
    (1 - gamma) times the task's progress at every step before success; auto: progress if the worlds report it, else success;
    env: the environment's reward."""
    checkpoint_every: int = option(100, ">= 1")
    """Iterations between two checkpoints. It affects the result, since all worlds begin new episodes at a checkpoint."""
    eval_every: int | None = option(None, ">= 1")
    """Iterations between two evaluations without noise, in separate worlds and on separate seeds; null: none."""
    videos: int = option(0, ">= 0")
    """Episodes of each evaluation that are recorded as videos in `videos/` (simulator only)."""
    select: Literal["last", "success"] = "last"
    """Which policy the run saves: the last one, or the one with the best evaluation."""
    seed: int = 0
    """Seed of the exploration noise, the order of minibatches and the episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.seed <= MAX_SEED, f"--seed must be 0 .. {MAX_SEED}, got {self.seed}")
        require(
            self.select == "last" or self.eval_every is not None,
            "--select success chooses by evaluations; give --eval-every",
        )


@dataclass(frozen=True)
class Surroundings:
    """The worlds in which a policy is trained and evaluated."""

    open_worlds: Callable[[ChunkPolicy], Any]
    """Policy -> the `EpisodeWorlds` for training, with the policy's keys and actions; `improve` closes them."""
    evaluate: Callable[[ChunkPolicy, Path], float] | None = None
    """(policy, folder for videos) -> success rate (0 .. 1) in closed loop, on separate seeds."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Entries to add to the provenance, such as `task`."""


def improve(
    start: str | Path,
    surroundings: Surroundings,
    run_dir: str | Path,
    config: ImproveConfig,
    ppo: PPOConfig,
    *,
    resume: bool = False,
    device: str = "cpu",
) -> Path:
    """Improve the policy in the run folder `start` by reinforcement learning; returns the new run folder.

    Args:
        start: run folder of a policy that succeeds at least sometimes, since a failure gives no reward to learn from.
        surroundings: the worlds for training and evaluation.
        run_dir: the new run folder; must not contain a run unless `resume` is set.
        config: length, reward, evaluation and checkpoints.
        ppo: options of the algorithm.
        resume: continue from the last checkpoint in `run_dir`.
        device: device of the policy, such as `cpu` or `cuda`.

    Raises:
        ConfigError: `run_dir` already contains a run, there is no run to resume, or the warm-up saw no reward.
    """
    run_dir = Path(run_dir)
    is_resumed(run_dir, resume)  # raises if the folder already contains a run
    policy = read_policy(start)
    learner = Learner(policy.to(device), ppo)
    # The new policy is executed as it is trained: it replans after each decision.
    execution = RecedingOptions(replan_every=learner.decision_steps)
    for each in (policy, learner.averaged):
        each.config = replace(each.config, execution=execution)
        each.spec = replace(each.spec, execution=values_of(execution))
    provenance = {**read_provenance(start), **surroundings.facts, "improved_from": Path(start).name}
    worlds = surroundings.open_worlds(policy)
    try:
        with locked(run_dir):
            run = _Run(learner, worlds, run_dir, config, provenance)
            if (run_dir / RESUME_FILE).exists():
                run.load()
            run.go(surroundings.evaluate)
            run.board.close()
    finally:
        worlds.close()
    return run_dir


class _Run:
    """The state of one run, its loop, and the files that it writes."""

    def __init__(
        self,
        learner: Learner,
        worlds: EpisodeWorlds,
        run_dir: Path,
        config: ImproveConfig,
        provenance: Mapping[str, Any],
    ) -> None:
        self.learner, self.run_dir, self.config, self.provenance = learner, run_dir, config, dict(provenance)
        self.anchor = read_schedule(learner.config.anchor, "--ppo.anchor")
        ppo, first_seed = learner.config, TRAINING_SEED + SEEDS_PER_RUN * config.seed
        self.collector = Collector(learner, worlds, ppo.rollout_steps, config.reward, ppo.gamma, first_seed)
        self.iteration, self.elapsed_s = 0, 0.0
        self.best: dict[str, float | int] | None = None
        self.history: dict[str, list[dict[str, float | int]]] = {"improve": [], "success": []}
        self.board = SummaryWriter(str(run_dir / BOARD))

    def go(self, evaluate: Callable[[ChunkPolicy, Path], float] | None) -> None:
        """Run the remaining iterations."""
        config, finished = self.config, False
        while not finished and self.iteration < config.iterations:
            began = time.monotonic()
            self._iterate()
            spent_s = time.monotonic() - began
            self.elapsed_s += spent_s
            figures = self.history["improve"][-1]
            figures["steps_per_s"] = self.collector.storage.done.numel() / spent_s
            for name in figures.keys() - {"step", "iteration"}:
                self.board.add_scalar(f"improve/{name}", figures[name], self.collector.env_steps)
            LOG.info("%s", _line(figures, config.iterations))
            out_of_time = config.max_minutes is not None and self.elapsed_s >= 60 * config.max_minutes
            finished = self.iteration == config.iterations or out_of_time
            if config.eval_every and (finished or self.iteration % config.eval_every == 0):
                self._evaluate(evaluate)
            if finished or self.iteration % config.checkpoint_every == 0:
                self._save(finished)

    def _iterate(self) -> None:
        """One rollout and one update; in the first `warmup_iterations` only the critic is updated."""
        learner, collector, ppo = self.learner, self.collector, self.learner.config
        # Seeded for each iteration, so that a resumed run draws the same noise.
        collector.generator.manual_seed(1_000_003 * self.config.seed + self.iteration)
        before, figures = collector.collect()
        rows = collector.storage.steps
        names = ("reward", "value", "final_value", "terminated", "truncated", "decides")
        estimate = advantages(**{name: rows[name] for name in names}, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)
        collector.storage.add("advantage", estimate)
        anchor = self.anchor(self.iteration, self.config.iterations - 1)
        warming_up = self.iteration < ppo.warmup_iterations
        figures |= learner.update(collector.storage, before, anchor, collector.generator, critic_only=warming_up)
        self._check_reward()
        self.iteration += 1
        std = learner.log_std.detach().exp().mean().item()
        where = {"step": collector.env_steps, "iteration": self.iteration}
        self.history["improve"].append({**where, **figures, "std": std, "lr": learner.lr, "anchor": anchor})

    def _check_reward(self) -> None:
        """Raise at the end of the warm-up if no reward occurred: PPO would have nothing to learn from."""
        collector = self.collector
        if collector.rewarded or self.iteration + 1 < max(self.learner.config.warmup_iterations, 1):
            return
        raise ConfigError(
            f"no reward in the warm-up: 0 of {collector.episodes} episodes ({collector.env_steps} steps) succeeded; start "
            "from a policy that sometimes succeeds (more demos, or `robopolicy dagger`), choose a smaller --ppo.std or more "
            "--ppo.warmup_iterations, or give --reward progress or env if the environment rewards progress"
        )

    def _evaluate(self, evaluate: Callable[[ChunkPolicy, Path], float] | None) -> None:
        """Evaluate the policy without noise, and save it if `select` is success and it is the best so far."""
        if evaluate is None:
            raise ConfigError("--eval-every needs worlds to evaluate in; leave it out")
        steps = self.collector.env_steps
        rate = float(evaluate(self.learner.averaged, self.run_dir / VIDEOS / f"iteration_{self.iteration:04}"))
        self.history["success"].append({"step": steps, "iteration": self.iteration, "rate": rate})
        self.board.add_scalar("success/rate", rate, steps)
        LOG.info("evaluated %.1f %% without noise after %d steps", 100 * rate, steps)
        if self.config.select == "success" and (self.best is None or rate >= self.best["rate"]):
            self.best = {"step": steps, "rate": rate}
            self._keep()

    def _keep(self) -> None:
        """Write the current policy to the run folder, with the seeds and steps that it was trained on."""
        done = self.collector
        trained_on = {"seeds": [done.first_seed, done.next_seed - 1], "env_steps": done.env_steps}
        save_policy(self.learner.averaged, self.run_dir, {**self.provenance, "rollouts": trained_on})

    def _save(self, finished: bool) -> None:
        """Write the policy, the metrics, and finally the resume file; then begin new episodes in all worlds."""
        if self.config.select == "last":
            self._keep()
        metrics = {
            "steps": self.collector.env_steps,
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
            "run": {name: getattr(self, name) for name in RUN_STATE},
            "collector": {name: getattr(self.collector, name) for name in COLLECTOR_STATE},
            "learner": self.learner.state_dict(),
            "optimizers": [self.learner.optimizer.state_dict(), self.learner.critic_optimizer.state_dict()],
        }
        with replacing(self.run_dir / RESUME_FILE) as own:
            torch.save(saved, own)
        self.collector.restart()

    def load(self) -> None:
        """Continue from the resume file."""
        fields = ("options", "run", "collector", "learner", "optimizers")
        saved = read_resume(self.run_dir / RESUME_FILE, fields, self.learner.policy.device)
        for name, value in self._options().items():
            before = saved["options"].get(name)
            require(
                before == value,
                f"--{name} is {value} but the run in {self.run_dir} has {before}; resume with the same",
            )
        for part, state in ((self, saved["run"]), (self.collector, saved["collector"])):
            for name, value in state.items():
                setattr(part, name, value)
        self.learner.load_state_dict(saved["learner"])
        self.learner.optimizer.load_state_dict(saved["optimizers"][0])
        self.learner.critic_optimizer.load_state_dict(saved["optimizers"][1])
        self.collector.restart()

    def _options(self) -> dict[str, Any]:
        """Settings that must not change when a run is resumed."""
        own = {name: getattr(self.config, name) for name in ("reward", "checkpoint_every", "seed")}
        ppo = {f"ppo.{name}": value for name, value in asdict(self.learner.config).items()}
        return {**own, "num_envs": self.collector.worlds.num_envs, **ppo}


RUN_STATE = ("iteration", "elapsed_s", "best", "history")
"""Attributes of `_Run` that a checkpoint holds."""
COLLECTOR_STATE = ("next_seed", "env_steps", "episodes", "rewarded")
"""Attributes of `Collector` that a checkpoint holds."""


def _line(figures: Mapping[str, float | int], iterations: int) -> str:
    """The statistics of one iteration as a line for the log."""
    rate = (
        f"{100 * figures['success']:.0f} % of {figures['episodes']:.0f}" if "success" in figures else "no episode ended"
    )
    nothing = float("nan")
    parts = [f"{figures['iteration']}/{iterations}".ljust(9) + f" success {rate}"]
    parts += [f"return {figures.get('return', nothing):.2f}", f"length {figures.get('length', nothing):.0f}"]
    parts += [f"value error {figures['value_error']:.3f}"]
    if "kl" in figures:
        parts += [f"KL {figures['kl']:.4f}", f"from the start {figures['anchor_kl']:.3f}"]
        parts += [f"entropy {figures['entropy']:.2f}", f"std {figures['std']:.3f}"]
    else:
        parts.append("warm-up of the critic")
    return "   ".join([*parts, f"{figures['steps_per_s']:.0f} steps/s"])
