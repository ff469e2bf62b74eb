"""From a run folder to a better run folder: it gets better, survives kills, and says what it cannot work with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, load_policy, read_provenance, save_policy
from robopolicy.rollout.env_map import EnvMap
from robopolicy.rollout.env_worlds import open_worlds
from robopolicy.rollout.evaluate import evaluate_in_worlds
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.training.improve import TRAINING_SEED, ImproveConfig, Surroundings, improve
from robopolicy.training.reinforce import PPOConfig
from robopolicy.types import ActionSpec, ArraySpec
from tests.demos.test_writer import dies_in_a_child
from tests.small_runs import SMALL
from tests.training.t_maze import TMaze

COPIES = 16
LIMIT = EnvMap.read({"max_episode_steps": 20})
UNTRAINED: dict[str, Any] = {
    "encoder.width": 16,
    "encoder.hidden": 16,
    "memory.window": 8,
    "memory.layers": 1,
    "memory.hidden": 16,
    "action_head.chunk": 1,
    "action_head.widths": [16],
}


def worlds(policy: Any) -> Any:
    return open_worlds(TMaze, policy, range(COPIES), env_map=LIMIT, num_envs=COPIES)


def untrained(folder: Path, changes: Mapping[str, Any]) -> Path:
    """The run folder of a policy that has learned nothing."""
    torch.manual_seed(0)
    config = ExperimentConfig().change({**UNTRAINED, **changes})
    facts = DemoFacts(ActionSpec(arm=1, gripper=0), {"state": ArraySpec((2,))})
    return save_policy(build_policy(config, facts), folder, {"task": None, "demo_seeds": [1, 2]})


def success_rate(folder: Path, episodes: int = 200) -> float:
    policy = load_policy(folder)
    copies = worlds(policy)
    return evaluate_in_worlds(policy, copies, range(episodes)).success_rate


SMALL_PPO = PPOConfig(rollout_steps=12, warmup_iterations=1, epochs=2, mini_batches=2, std=0.5, anchor="linear:0.1:0")


def run(start: Path, folder: Path, **options: Any) -> dict[str, Any]:
    resume = options.pop("resume", False)
    config = ImproveConfig(**{"iterations": 6, "checkpoint_every": 2, **options})
    improve(start, Surroundings(worlds), folder, config, SMALL_PPO, resume=resume)
    return json.loads((folder / "metrics.json").read_text())


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_policy(folder).state_dict().values()])


def test_the_result_is_a_run_folder_that_acts(tmp_path: Path) -> None:
    """Guards against: a policy that only its trainer can run, and provenance that forgets the demos or the rollouts."""
    start = untrained(tmp_path / "start", {})
    metrics = run(start, tmp_path / "better")
    assert not torch.equal(weights(start), weights(tmp_path / "better"))
    assert 0 <= success_rate(tmp_path / "better", 20) <= 1
    provenance = read_provenance(tmp_path / "better")
    assert provenance["improved_from"] == "start"
    assert provenance["demo_seeds"] == [1, 2]
    assert provenance["rollouts"]["seeds"][0] == TRAINING_SEED
    assert provenance["rollouts"]["env_steps"] == metrics["steps"] == 6 * 12 * COPIES
    assert [row["iteration"] for row in metrics["improve"]] == [1, 2, 3, 4, 5, 6]
    wanted = {"success", "return", "length", "kl", "anchor_kl", "entropy", "value_error", "steps_per_s", "anchor"}
    assert wanted <= metrics["improve"][-1].keys()
    assert metrics["finished"]
    assert list((tmp_path / "better" / "tensorboard").iterdir())


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against: noise, optimizer, statistics or episodes that a checkpoint forgets."""
    start = untrained(tmp_path / "start", {"memory.history": "carry"})
    whole = run(start, tmp_path / "whole")
    broken = tmp_path / "broken"
    done = 0

    def dies(self: Any, *_: Any) -> None:
        nonlocal done
        done += 1
        if done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("robopolicy.training.improve._Run._check_reward", dies)
        with pytest.raises(KeyboardInterrupt):
            run(start, broken)
    resumed = run(start, broken, resume=True)
    assert torch.equal(weights(tmp_path / "whole"), weights(broken))
    for ours, theirs in zip(resumed["improve"], whole["improve"], strict=True):
        assert {k: v for k, v in ours.items() if k != "steps_per_s"} == {
            k: v for k, v in theirs.items() if k != "steps_per_s"
        }


@pytest.mark.slow
def test_death_at_any_change_of_the_disk_changes_nothing(tmp_path: Path) -> None:
    """Guards against: a checkpoint whose parts are of different iterations, wherever a kill comes."""
    start = untrained(tmp_path / "start", {"memory.history": "carry"})
    run(start, tmp_path / "whole", iterations=4)
    fatal, reached = 0, True
    while reached:
        killed = tmp_path / f"killed_{fatal}"
        reached = dies_in_a_child(lambda killed=killed: run(start, killed, iterations=4), "os.rename", fatal)
        begun = (killed / "tensorboard").exists()
        if not reached:
            break
        run(start, killed, iterations=4, resume=begun)
        assert torch.equal(weights(tmp_path / "whole"), weights(killed)), fatal
        fatal += 1
    assert fatal >= 6


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    """Guards against: a run that is overwritten, and one that is continued under another algorithm."""
    start = untrained(tmp_path / "start", {})
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(start, tmp_path / "better", resume=True)
    (tmp_path / "better").mkdir()
    (tmp_path / "better" / "train.lock").touch()
    (tmp_path / "better" / "policy.json").write_text("{}")  # killed within the first checkpoint
    run(start, tmp_path / "better", iterations=2, resume=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        run(start, tmp_path / "better")
    with pytest.raises(ConfigError, match=r"--checkpoint_every is 3 but the run .* has 2"):
        run(start, tmp_path / "better", resume=True, checkpoint_every=3)


def test_a_warm_up_without_reward_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against: hours of training without a signal."""
    start = untrained(tmp_path / "start", {})
    monkeypatch.setattr(TMaze, "step", lambda self, action: (self.observe(), 0.0, True, False, {"is_success": False}))
    with pytest.raises(ConfigError, match=r"no reward in the warm-up: 0 of 192 episodes .* start from a policy that"):
        run(start, tmp_path / "better")


def test_a_run_in_the_simulator_resumes_exactly(tmp_path: Path) -> None:
    """Guards against: worlds whose physics remembers the episodes before a checkpoint."""
    config = ExperimentConfig().change(SMALL)
    facts = DemoFacts(ActionSpec(arm=6, gripper=1), {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))})
    start = save_policy(build_policy(config, facts), tmp_path / "start", {"task": "reach"})

    def reaching(policy: Any) -> RobotVectorEnv:
        return RobotVectorEnv("reach", 3, num_threads=1, max_episode_steps=7)

    def practise(name: str, iterations: int, resume: bool = False) -> None:
        ppo = PPOConfig(rollout_steps=10, warmup_iterations=0, epochs=1, mini_batches=1)
        options = ImproveConfig(iterations=iterations, checkpoint_every=1, reward="env")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("robopolicy.training.improve._Run._check_reward", lambda self: None)
            improve(start, Surroundings(reaching), tmp_path / name, options, ppo, resume=resume)

    practise("whole", 3)
    practise("broken", 1)
    practise("broken", 3, resume=True)
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert not torch.equal(weights(tmp_path / "whole"), weights(start))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_only_a_memory_solves_the_t_maze(tmp_path: Path, seed: int) -> None:
    """Guards against: gradients that do not reach the cue through the unrolled memory."""
    ppo = PPOConfig(
        rollout_steps=24,
        warmup_iterations=2,
        mini_batches=2,
        std=0.5,
        anchor="0",
        lr=1e-3,
        critic_lr=3e-3,
        entropy=0.001,
        gae_lambda=0.95,
        average=1,
    )
    kinds = {
        "lstm": {},
        "carry": {"memory.history": "carry"},
        "gru": {"memory.kind": "gru"},
        "none": {"memory.kind": "none"},
    }
    for name, changes in kinds.items():
        memory = {key: value for key, value in UNTRAINED.items() if name != "none" or key.startswith(("enc", "act"))}
        torch.manual_seed(seed)
        config = ExperimentConfig().change({**memory, **changes})
        facts = DemoFacts(ActionSpec(arm=1, gripper=0), {"state": ArraySpec((2,))})
        start = save_policy(build_policy(config, facts), tmp_path / f"{name}-start", {})
        improve(
            start,
            Surroundings(worlds),
            tmp_path / name,
            ImproveConfig(iterations=80, checkpoint_every=80, seed=seed),
            ppo,
        )
        rate = success_rate(tmp_path / name)
        print(name, seed, rate)
        assert 0.35 < rate < 0.65 if name == "none" else rate >= 0.95, (name, rate)
