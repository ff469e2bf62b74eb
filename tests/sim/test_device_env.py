"""The vector environment over Warp: tensors in, tensors out; here on the CPU."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions

pytest.importorskip("mujoco_warp", reason="this physics needs the extra 'sim'")
OPEN = torch.tensor([[0.0, 0, 0, 0, 0, 0, -1]])


def steps(env: RobotVectorEnv, count: int) -> tuple:
    """The answer to the last of some steps at rest."""
    return [env.step(OPEN.expand(env.num_envs, -1)) for _ in range(count)][-1]


@pytest.fixture(scope="module")
def same_step(device_env) -> RobotVectorEnv:
    """Worlds that reset themselves after three steps."""
    import robopolicy.sim

    assert robopolicy.sim
    return gymnasium.make_vec(
        "robopolicy/Place-v0", 2, physics="warp", autoreset_mode=AutoresetMode.SAME_STEP, max_episode_steps=3
    )


def test_everything_is_a_tensor(device_env):
    """Guards against: an array on the host, which would be a copy out of the device at every step."""
    obs, info = device_env.reset(seed=3)
    more = device_env.step(expert_actions(device_env))
    for value in [*obs.values(), *more[0].values(), *more[1:4], info["success"], info["seed"], info["fault"]]:
        assert isinstance(value, torch.Tensor)
    assert more[0]["front"].dtype == torch.uint8
    assert more[0]["ee_pose"].dtype == torch.float32
    assert device_env.observation_space["front"].shape == (4, 32, 32, 3)


def test_episodes_are_those_of_the_cpu(device_env):
    """Guards against: a seed that means another scene, instruction or observation on another kind of physics."""
    obs, info = device_env.reset(seed=[5, 6, 7, 8])
    cpu = RobotVectorEnv("place", 4, cameras=("front",), image_size=32)
    theirs, their_info = cpu.reset(seed=[5, 6, 7, 8])
    assert tuple(info["instruction"]) == tuple(their_info["instruction"])
    assert info["instruction"][1] == their_info["instruction"][1]
    assert len(info["instruction"]) == 4
    for _ in range(3):
        assert obs.keys() == theirs.keys()
        for key, values in theirs.items():
            tolerance = 2 if key == "front" else 1e-4
            np.testing.assert_allclose(obs[key].numpy().astype(float), values.astype(float), atol=tolerance)
        actions = expert_actions(cpu)
        obs, theirs = device_env.step(torch.from_numpy(actions))[0], cpu.step(actions)[0]


def test_reset_mask_leaves_the_other_worlds_alone(device_env):
    """Guards against: a reset of one world that disturbs its neighbors."""
    device_env.reset(seed=0)
    obs, *_, info = steps(device_env, 2)
    mask = torch.tensor([False, True, False, False])
    again, again_info = device_env.reset(seed=[9, 9, 9, 9], options={"reset_mask": mask})
    for key, values in obs.items():
        assert torch.equal(values[~mask], again[key][~mask]), key
        assert key == "gripper" or not torch.equal(values[mask], again[key][mask]), key
    assert again_info["seed"].tolist() == [0, 9, 2, 3]
    assert again_info["instruction"][0] == info["instruction"][0]
    assert device_env.state.step.tolist() == [2, 0, 2, 2]


def test_observations_of_two_steps_do_not_share_memory(device_env):
    """Guards against: a recorded frame that changes with the next step, which would make every frame of a demo the last one."""
    first, _ = device_env.reset(seed=0)
    kept = {key: value.clone() for key, value in first.items()}
    steps(device_env, 2)
    for key, value in kept.items():
        assert torch.equal(first[key], value), key


def test_same_step_autoreset_gives_the_last_observation_apart(same_step):
    """Guards against: a final observation that is lost to whoever computes a value from it."""
    assert same_step.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    same_step.reset(seed=0)
    for _ in range(2):
        moved, *_ = same_step.step(torch.ones(2, 7))
    obs, _, terminated, truncated, info = same_step.step(torch.ones(2, 7))
    assert truncated.all()
    assert not terminated.any()
    assert info["_final_obs"].all()
    final, moved, first = (seen["ee_pose"][:, :3] for seen in (info["final_obs"], moved, obs))
    assert (final - moved).abs().max() < 0.08
    assert (final - first).abs().max() > 0.01
    assert same_step.unwrapped.state.step.tolist() == [0, 0]
    assert not set(info["seed"].tolist()) & set(info["final_info"]["seed"].tolist())


def test_no_step_and_no_reset_by_itself_waits_for_the_device(same_step, unwaiting):
    """Guards against: one hidden `.item()` per step, which keeps a GPU idle most of the time."""
    same_step.reset(seed=0)
    same_step.step(torch.ones(2, 7))
    same_step.reset(options={"reset_mask": torch.tensor([True, False])})
    with unwaiting():
        for _ in range(4):
            same_step.step(torch.ones(2, 7))
        same_step.reset(options={"reset_mask": torch.tensor([True, False])})


def test_new_episodes_go_on_and_on(same_step):
    """Guards against: a ring that runs dry, which would show the same scenes again and again."""
    same_step.reset(seed=0)
    seeds: list[int] = []
    for _ in range(60):
        *_, info = same_step.step(torch.ones(2, 7))
        seeds += info["final_info"]["seed"][info["_final_info"]].tolist()
    assert len(seeds) == len(set(seeds)) == 40


def test_an_action_that_is_no_number_fails_its_world_alone(device_env):
    """Guards against: an episode that continues as if nothing had happened, since a device can't raise."""
    device_env.reset(seed=0)
    actions = torch.zeros(4, 7)
    actions[2, 1] = float("nan")
    obs, reward, terminated, _, info = device_env.step(actions)
    assert terminated.tolist() == [False, False, True, False]
    assert info["fault"].tolist() == [0, 0, 4, 0]
    assert not reward.any()
    assert all(torch.isfinite(values.float()).all() for values in obs.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physics": "warp", "autoreset_mode": "NextStep"}, "NextStep needs physics 'batch'"),
        ({"physics": "batch", "device": "cuda"}, "device cuda: this machine has|runs on the CPU only"),
        ({"device": "mps"}, "expected cpu, cuda or cuda:<n>"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    """Guards against: a traceback out of Warp for a combination of options that can't work."""
    with pytest.raises(ValueError, match=message):
        RobotVectorEnv("place", 2, **options)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reach", "lift", "stack", "drawer", "recall", "chain"])
def test_the_expert_solves_every_task_on_a_device(task):
    """Guards against: a task whose code knows only NumPy, or a scene that Warp simulates otherwise."""
    env = RobotVectorEnv(task, 8, physics="warp")
    env.reset(seed=0)
    success, fault = torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.int64)
    for _ in range(env.max_episode_steps):
        *_, info = env.step(expert_actions(env))
        success, fault = success | info["success"], fault | info["fault"]
        if success.all():
            break
    assert success.all()
    assert not fault.any()


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    """Guards against: kernels that give other numbers on a GPU."""
    cpu, gpu = (RobotVectorEnv("place", 4, physics="warp", device=d, cameras=("front",)) for d in ("cpu", "cuda"))
    ours, theirs = gpu.reset(seed=0)[0], cpu.reset(seed=0)[0]
    for step in range(5):
        for key, values in theirs.items():
            difference = (ours[key].cpu().float() - values.float()).abs()
            assert (difference > (2 if key == "front" else 1e-4)).float().mean() < 0.01, (step, key)
        actions = expert_actions(cpu)
        ours, theirs = gpu.step(actions.cuda())[0], cpu.step(actions)[0]
