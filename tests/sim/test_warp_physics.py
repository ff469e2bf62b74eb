"""What is particular to Warp's physics; its contract is tested in conformance/."""

import numpy as np
import pytest
import torch

from robopolicy.control.kinematics import damped_least_squares, pose_and_jacobian
from robopolicy.control.profile import read_profile
from robopolicy.sim.physics import Fault
from robopolicy.sim.scene import ARM_JOINTS, build_scene

mujoco_warp = pytest.importorskip("mujoco_warp", reason="this physics needs the extra 'sim'")

from robopolicy.sim.warp_physics import Replay, WarpPhysics, WarpStage  # noqa: E402


@pytest.fixture(scope="module")
def scene():
    return build_scene(("cubes", "plates"))


def test_the_jacobian_on_the_device_is_that_of_mujoco_warp(device_env):
    """Guards against: a twist mapped by another Jacobian than the simulated arm's, which would lead it astray."""
    import warp

    device_env.reset(seed=0)
    device_env.step(torch.full((4, 7), 0.3))
    stage, model = device_env.physics.stage, device_env.scene.model
    position, _, ours = pose_and_jacobian(read_profile("panda").arm, device_env.physics.qpos[:, :ARM_JOINTS])
    with stage.on_device():
        linear, angular = (warp.zeros((4, 3, model.nv), dtype=float) for _ in range(2))
        points = warp.from_torch(position.contiguous(), dtype=warp.vec3)
        bodies = warp.full(4, value=int(model.site("ee").bodyid[0]), dtype=int)
        mujoco_warp.kinematics(stage.model, stage.data)
        mujoco_warp.com_pos(stage.model, stage.data)
        mujoco_warp.jac(stage.model, stage.data, linear, angular, points, bodies)
    theirs = torch.cat([warp.to_torch(linear), warp.to_torch(angular)], 1)[..., :ARM_JOINTS]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    site = warp.to_torch(stage.data.site_xpos)[:, model.site("ee").id]
    torch.testing.assert_close(position, site, atol=1e-5, rtol=0)
    twist = torch.tensor([[0.02, -0.01, 0.03, 0.1, 0.0, -0.2]]).expand(4, -1)
    step = damped_least_squares(ours, twist)
    expected = damped_least_squares(theirs.double().numpy(), twist.double().numpy())
    np.testing.assert_allclose(step.numpy(), expected, atol=1e-4)


def test_contacts_without_room_are_a_fault(scene):
    """Guards against: cubes that fall through the table without an error, since the contact buffer is full."""
    physics = WarpPhysics(scene, 2, "cpu", contacts=4)
    start = torch.from_numpy(np.repeat(scene.home_qpos[None], 2, 0)).float()
    start[:, scene.object_slice.start + 2 :: 7] -= 1e-4
    mocap = torch.from_numpy(np.repeat(scene.home_mocap[None], 2, 0)).float()
    physics.reset(torch.ones(2, dtype=torch.bool), start, mocap)
    physics.step(start[:, :9])  # 24 contacts in room for 8, which the worlds share
    assert physics.faults().tolist() == [Fault.OVERFLOW] * 2
    physics.reset(torch.tensor([False, True]), start, mocap)
    assert physics.faults().tolist() == [Fault.OVERFLOW, 0]


def test_reaching_an_iteration_limit_is_no_fault(scene):
    """Guards against: sound episodes that fail because the solver reached its iteration limit."""
    physics = WarpPhysics(scene, 2, "cpu")
    limits = mujoco_warp.OverflowType.ITERATIONS | mujoco_warp.OverflowType.LS_ITERATIONS
    physics.stage.tensor("overflow").fill_(int(limits))
    assert not physics.faults().any()
    physics.stage.tensor("overflow").fill_(int(limits | mujoco_warp.OverflowType.NEFC))
    assert physics.faults().tolist() == [Fault.OVERFLOW] * 2


def test_work_is_replayed_as_it_was_captured(scene):
    """Guards against: a graph that runs stale work, or that runs while it is captured and so steps twice."""
    stage = WarpStage(scene, 1, "cpu", (), 1, 1)
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        mujoco_warp.kinematics(stage.model, stage.data)

    replay, qpos, seen = Replay(stage, work), stage.tensor("qpos"), []
    for angle in (0.1, 0.2, 0.3, 0.4):
        qpos[0, 0] = angle
        replay()
        seen.append(float(torch.atan2(stage.tensor("xmat")[0, 2, 1, 0], stage.tensor("xmat")[0, 2, 0, 0])))
    np.testing.assert_allclose(seen, (0.1, 0.2, 0.3, 0.4), atol=1e-6)
    assert len(calls) == 2  # as it is, and captured
