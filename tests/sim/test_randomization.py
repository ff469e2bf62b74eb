"""Domain randomization: drawn from the seed, the same on every physics, felt by what it is meant for."""

import copy
from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.sim.randomization import Randomization, noise
from robopolicy.sim.scene import Scene, build_scene
from robopolicy.sim.worlds import PRIVILEGED

EVERYTHING = Randomization(
    joint_rad=0.05,
    turn_rad=0.5,
    color=0.1,
    light=0.3,
    camera_m=0.02,
    camera_rad=0.05,
    friction=0.3,
    mass=0.5,
    delay_steps=2,
    action_noise=0.05,
    obs_noise=0.001,
)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(("cubes", "plates"))


def make(**sizes: float) -> RobotVectorEnv:
    """Two worlds of `place`, randomized."""
    return RobotVectorEnv("place", 2, randomization=Randomization(**sizes))


def test_a_change_depends_on_its_seed_alone(scene):
    """Guards against: an episode that depends on the one before, and can't be shown again."""
    randomization = EVERYTHING
    one, other, again = (randomization.draw(scene, seed) for seed in (1, 2, 1))
    assert one.fields.keys() == set(randomization.fields) == other.fields.keys()
    for name, values in one.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert not np.array_equal(values, other.fields[name]), name
    np.testing.assert_array_equal(one.joint_offset_rad, again.joint_offset_rad)


def test_nothing_is_changed_where_nothing_is_asked_for(scene):
    """Guards against: episodes that change although randomization is off."""
    randomization = Randomization()
    change = randomization.draw(scene, 5)
    assert not randomization.fields
    assert not change.fields
    assert change.start(scene, scene.home_qpos) is scene.home_qpos


@pytest.mark.parametrize("setting", ["color", "light", "camera_m", "camera_rad", "friction", "mass"])
def test_each_setting_changes_its_own_fields_within_its_bounds(scene, setting):
    """Guards against: a setting that moves another's fields, which then can't be switched off."""
    alone = Randomization(**{setting: 0.1})
    assert alone.fields
    change = alone.draw(scene, 3)
    together = Randomization(**{**vars(EVERYTHING), setting: 0.1}).draw(scene, 3)
    for name in alone.fields:
        values, original = change.fields[name], getattr(scene.model, name)
        np.testing.assert_array_equal(values, together.fields[name])
        assert values.shape == original.shape
        assert 0 < np.abs(values - original).max() <= 0.15 * max(1.0, np.abs(original).max())


def test_what_follows_from_a_mass_is_what_mujoco_derives(scene):
    """Guards against: a contact as stiff as for the old mass, which would make a heavy cube sink into the table."""
    change = Randomization(mass=0.5).draw(scene, 0)
    model = copy.copy(scene.model)
    model.body_mass[:], model.body_inertia[:] = change.fields["body_mass"], change.fields["body_inertia"]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    for name, values in change.fields.items():
        np.testing.assert_allclose(values, getattr(model, name), rtol=1e-6, atol=1e-9, err_msg=name)


def test_turned_and_moved_starts_stay_on_the_table(scene):
    """Guards against: a cube turned about another axis, which would begin on its edge."""
    change = EVERYTHING.draw(scene, 4)
    qpos = change.start(scene, scene.home_qpos)
    poses = qpos[scene.object_slice].reshape(-1, 7)
    np.testing.assert_allclose(np.linalg.norm(poses[:, 3:], axis=1), 1.0)
    assert not poses[:, 4:6].any()
    assert 0.0 < np.abs(poses[:, 6]).max() < 0.3
    assert 0.0 < np.abs(qpos[:7] - scene.home_qpos[:7]).max() <= 0.05


def test_late_actions_are_those_of_some_steps_ago():
    """Guards against: latency that drops or repeats actions, which would be another disturbance."""
    late, prompt = make(delay_steps=2), make()
    late.reset(seed=0)
    delays = late._delay.tolist()
    rng = np.random.default_rng(0)
    rest = np.array([0.0] * 6 + [-1.0])
    actions = [rng.uniform(-1, 1, (2, 7)) for _ in range(5)]
    prompt.reset(seed=0)
    for step, action in enumerate(actions):
        late.step(action)
        due = [actions[step - delay][world] if step >= delay else rest for world, delay in enumerate(delays)]
        prompt.step(np.stack(due))
        np.testing.assert_array_equal(late.physics.qpos, prompt.physics.qpos)
    assert {make(delay_steps=2).draw([seed]).delay[0] for seed in range(20)} == {0, 1, 2}


def test_noise_is_normal_and_depends_on_seed_step_and_stream_alone():
    """Guards against: noise of one generator for all worlds, which would make an episode depend on its neighbors."""
    seeds, steps = np.arange(400), np.full(400, 7)
    values = noise(seeds, steps, 0, 6)
    assert abs(values.mean()) < 0.06
    assert abs(values.std() - 1) < 0.06
    assert abs(np.corrcoef(values.T) - np.eye(6)).max() < 0.2
    np.testing.assert_array_equal(noise(seeds[5:6], steps[:1], 0, 6)[0], values[5])
    others = [noise(seeds, steps + 1, 0, 6), noise(seeds + 1, steps, 0, 6)]
    others += [noise(seeds, steps, stream, 6) for stream in range(1, 20)]
    for other in others:
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.1
        assert np.abs(other).max() < 5.0
    tensor = noise(torch.from_numpy(seeds), torch.from_numpy(steps), 0, 6)
    np.testing.assert_allclose(values, tensor.numpy(), rtol=1e-5, atol=1e-5)


def test_noise_falls_on_readings_but_not_on_privileged_keys_nor_on_the_world():
    """Guards against: a disturbed label, which would teach the disturbance."""
    noisy, clean = make(obs_noise=0.01), make()
    seen, true = noisy.reset(seed=0)[0], clean.reset(seed=0)[0]
    np.testing.assert_array_equal(noisy.physics.qpos, clean.physics.qpos)
    for key, values in true.items():
        error = np.abs(seen[key] - values).max()
        assert error == 0 if key in PRIVILEGED else 0 < error < 0.06, key
    np.testing.assert_array_equal(seen["to_cube_red"], seen["cube_red"][:, -3:])


def test_every_kind_of_physics_is_randomized_alike(device_env):
    """Guards against: a policy that meets other worlds on a GPU than on the CPU."""
    cpu, device = (
        RobotVectorEnv("place", 2, physics=kind, cameras=("front",), image_size=32, randomization=EVERYTHING)
        for kind in ("batch", "warp")
    )
    theirs, ours = cpu.reset(seed=0)[0], device.reset(seed=0)[0]
    plain = device_env.reset(seed=0)[0]
    for _ in range(2):
        for name, values in cpu.physics.fields.items():
            np.testing.assert_allclose(device.physics.fields[name].numpy(), values, rtol=1e-5, atol=1e-6)
        for key, values in theirs.items():
            difference = np.abs(ours[key].numpy().astype(float) - values)
            assert (difference < (3 if key == "front" else 5e-4)).mean() > 0.99, key
        actions = expert_actions(cpu)
        theirs, ours = cpu.step(actions)[0], device.step(torch.from_numpy(actions))[0]
    assert abs(theirs["front"].astype(int) - plain["front"][:2].numpy()).mean() > 2
    cpu.reset(seed=[0, 9], options={"reset_mask": np.array([False, True])})
    device.reset(seed=[0, 9], options={"reset_mask": torch.tensor([False, True])})
    np.testing.assert_allclose(
        device.physics.fields["geom_friction"].numpy(), cpu.physics.fields["geom_friction"], rtol=1e-5
    )


def test_the_expert_copes_with_moderate_randomization():
    """Guards against: demonstrations that mostly fail, which would show how to fail."""
    moderate = replace(EVERYTHING, turn_rad=0.1, delay_steps=1)
    env = RobotVectorEnv("lift", 12, randomization=moderate)
    env.reset(seed=0)
    success = np.zeros(12, bool)
    for _ in range(env.max_episode_steps):
        *_, info = env.step(expert_actions(env))
        success |= info["success"]
    assert success.mean() > 0.7


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"mass": 1.0}, "mass must be >= 0 and < 1, got 1.0"), ({"light": -0.1}, "light must be >= 0")],
)
def test_impossible_sizes_are_refused(sizes, message):
    """Guards against: a cube without mass, which falls through everything."""
    with pytest.raises(ConfigError, match=message):
        Randomization(**sizes)
