"""Rollouts that stay on a device; here on Warp's CPU device, by the same captured graphs."""

import numpy as np
import pytest
import torch

from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.model.normalization import Statistics
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import run_episodes
from robopolicy.sim.device_rollout import DevicePolicyActor, Stopwatch, _Ledger, run_episodes_on_device
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.evaluation import evaluate
from robopolicy.sim.expert import ActionNoise, DeviceExpertActor, collect
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL

SEEDS = (11, 12, 13, 14, 15, 16)
NOISE = ActionNoise(std=0.1, push_share=0.0)


def policy(env: RobotVectorEnv, frame_stride: int = 1) -> ChunkPolicy:
    """Random weights that look at images and proprioception, and read the instruction."""
    torch.manual_seed(0)
    config = ExperimentConfig().change(SMALL | {"data.frame_stride": frame_stride, "encoder.kind": "pixels"})
    obs = {"front": ArraySpec((32, 32, 3), "uint8"), "ee_pose": ArraySpec((7,))}
    spec = ActionSpec(arm=6, gripper=1, gripper_values=((-1.0, 1.0),), kind="delta", space="ee", rate_hz=20.0)
    rows = np.random.default_rng(0).normal(size=(50, 7))
    words = Vocabulary.of(env.draw(SEEDS) and env.sentences.texts)
    statistics = {"ee_pose": Statistics.of(rows * 0.2)}
    facts = DemoFacts(spec, obs, words, obs_statistics=statistics, action_statistics=Statistics.of(np.sign(rows)))
    return build_policy(config, facts).eval()


def demos(env: RobotVectorEnv) -> dict:
    """The expert's episodes by seed."""
    return {episode.seed: episode for episode in collect(env, SEEDS, NOISE)}


def test_expert_episodes_are_those_of_the_cpu(device_env):
    """Guards against: demonstrations of other scenes, or with other noise, under the same seeds on a GPU."""
    ours = demos(device_env)
    theirs = demos(RobotVectorEnv("place", 4, cameras=("front",), image_size=32))
    assert ours.keys() == theirs.keys() == set(SEEDS)
    for seed, episode in ours.items():
        other = theirs[seed]
        assert episode.success
        assert other.success
        assert episode.instruction == other.instruction
        assert len(episode.demos) == len(other.demos) == 1
        demo, like = episode.demos[0], other.demos[0]
        assert demo.obs.keys() == like.obs.keys()
        np.testing.assert_allclose(demo.actions[:8], like.actions[:8], atol=0.02)
        np.testing.assert_allclose(demo.obs["ee_pose"][:8], like.obs["ee_pose"][:8], atol=2e-3)
        np.testing.assert_allclose(
            (demo.executed_actions - demo.actions)[0], (like.executed_actions - like.actions)[0], atol=1e-6
        )
        assert abs(demo.obs["front"][0].astype(int) - like.obs["front"][0]).max() <= 2
        assert demo.dones.sum() == 1
        assert demo.dones[-1]


def test_every_seed_is_run_once_however_rarely_the_device_is_looked_at(device_env):
    """Guards against: episodes lost or counted twice between two looks, which would bend the success rate."""
    device_env.max_episode_steps, before = 3, device_env.max_episode_steps
    try:
        actor = DeviceExpertActor(device_env, ActionNoise.off(), SEEDS)
        episodes = list(run_episodes_on_device(device_env, actor, SEEDS, look_every=7))
    finally:
        device_env.max_episode_steps = before
    assert [(episode.seed, episode.steps, episode.demos) for episode in episodes] == [(s, 3, ()) for s in SEEDS]


@pytest.mark.parametrize("frame_stride", [1, 2])
def test_a_policy_in_the_loop_acts_as_on_the_cpu(device_env, frame_stride):
    """Guards against: a memory reset late, another world's instruction or a frame left out."""
    made = policy(device_env, frame_stride)
    cpu = RobotVectorEnv("place", 4, cameras=("front",), image_size=32, max_episode_steps=5)
    device_env.max_episode_steps, before = 5, device_env.max_episode_steps
    try:
        ours = DevicePolicyActor(made, device_env, RecedingOptions(replan_every=2))
        episodes = {e.seed: e for e in run_episodes_on_device(device_env, ours, SEEDS, record=True)}
    finally:
        device_env.max_episode_steps = before
    theirs = PolicyActor(made, 4, cpu.control_dt, RecedingOptions(replan_every=2))
    for other in run_episodes(cpu, theirs, SEEDS, record=True):
        demo, like = episodes[other.seed].demos[0], other.demos[0]
        assert demo.instruction == like.instruction
        np.testing.assert_allclose(demo.executed_actions, like.executed_actions, atol=2e-3)


def test_no_step_waits_for_the_device(device_env, unwaiting):
    """Guards against: one hidden `.item()` per step, which keeps a GPU idle most of the time."""
    actor = DevicePolicyActor(policy(device_env), device_env, RecedingOptions())
    ledger, watch = _Ledger(device_env, actor, SEEDS), Stopwatch(torch.device("cpu"))
    ledger.tick(True, watch)
    with unwaiting():
        ledger.tick(True, watch)


def test_no_step_of_the_expert_waits_for_the_device(device_env, unwaiting):
    """Guards against: an expert that waits for the device, and slows collection down."""
    actor = DeviceExpertActor(device_env, NOISE, SEEDS)
    ledger, watch = _Ledger(device_env, actor, SEEDS), Stopwatch(torch.device("cpu"))
    ledger.tick(False, watch)
    with unwaiting():
        ledger.tick(False, watch)


def test_a_fault_fails_its_episode_and_is_reported(device_env):
    """Guards against: a broken world that counts as the policy's success, or isn't reported."""
    made = policy(device_env)

    class Broken(DevicePolicyActor):
        def act(self, obs, instruction_id):
            label, action = super().act(obs, instruction_id)
            action[1] = float("nan")
            return label, action

    actor = Broken(made, device_env, RecedingOptions())
    episodes = [e for e, _ in zip(run_episodes_on_device(device_env, actor, SEEDS), range(2), strict=False)]
    assert not any(episode.success for episode in episodes)
    assert {episode.faults for episode in episodes} == {("action",)}


def test_an_evaluation_on_a_device_reports_as_one_on_the_cpu(device_env):
    """Guards against: figures that are missing, or named otherwise, in an evaluation on a device."""
    device_env.max_episode_steps, before = 4, device_env.max_episode_steps
    try:
        result = evaluate(policy(device_env), device_env, SEEDS, RecedingOptions())
    finally:
        device_env.max_episode_steps = before
    assert (result.episodes, result.successes, result.mean_steps) == (6, 0, 4.0)
    assert [outcome["seed"] for outcome in result.outcomes] == list(SEEDS)
    assert result.env_steps == 24
    assert result.inference_s > 0
    assert result.physics_s > 0
    assert result.faults == {}


def test_more_worlds_than_seeds_are_refused(device_env):
    """Guards against: worlds that never had an episode, which would be read as episodes."""
    actor = DeviceExpertActor(device_env, NOISE, (1,))
    with pytest.raises(ValueError, match="4 worlds for 1 episodes"):
        next(run_episodes_on_device(device_env, actor, (1,)))
