"""What the simulator's benchmark stands beside: bare `mj_step`, a loop as one writes it, gymnasium's Pusher, robosuite."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.scene import ARM_JOINTS

ROBOSUITE = """
import json, time
import numpy as np, robosuite
env = robosuite.make("Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False)
env.reset()
action = np.zeros(env.action_dim)
rates = []
for _ in range(3):
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS / 3:
        if calls % 900 == 0:
            env.reset()
        env.step(action)
        calls += 1
    rates.append(calls / (time.perf_counter() - began))
print(json.dumps({"rate": max(rates), "version": robosuite.__version__}))
"""


def bare_physics() -> Callable[[], None]:
    """One control step's `mj_step` calls of one world."""
    env = RobotVectorEnv("lift", 1, num_threads=1)
    env.reset(seed=0)
    model, data = env.scene.model, mujoco.MjData(env.scene.model)
    data.qpos[:] = env.physics.qpos[0]
    data.ctrl[:] = env.scene.home_qpos[: model.nu]

    def step() -> None:
        for _ in range(env.scene.n_substeps):
            mujoco.mj_step(model, data)

    return step


def plain_loop() -> Callable[[], None]:
    """One world as one writes it with MuJoCo's bindings: the same control and observation, no batch."""
    env = RobotVectorEnv("lift", 1)
    env.reset(seed=0)
    model, data = env.scene.model, mujoco.MjData(env.scene.model)
    data.qpos[:] = env.physics.qpos[0]
    mujoco.mj_forward(model, data)
    linear, angular = np.zeros((2, 3, model.nv))
    site, names = model.site("ee").id, env.scene.objects
    given = np.array([0.0, 0, 0, 0, 0, 0, -1])

    def step() -> None:
        action = np.clip(given, -1, 1)
        mujoco.mj_jacSite(model, data, linear, angular, site)
        jacobian = np.concatenate([linear, angular])[:, :ARM_JOINTS]
        twist = action[:6] * [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
        step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 0.0025 * np.eye(6), twist)
        data.ctrl[:ARM_JOINTS] = data.qpos[:ARM_JOINTS] + step
        data.ctrl[ARM_JOINTS:] = 0.02 * (1 - action[6])
        for _ in range(env.scene.n_substeps):
            mujoco.mj_step(model, data)
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, data.site_xmat[site])
        obs = {"ee_pose": np.concatenate([data.site_xpos[site], quaternion]).astype(np.float32)}
        obs["gripper"] = data.qpos[7:9].sum(keepdims=True).astype(np.float32)
        obs["qpos"] = data.qpos[:ARM_JOINTS].astype(np.float32)
        for name in names:
            body = data.body(name)
            pose = np.concatenate([body.xpos, body.xquat, body.xpos - data.site_xpos[site]])
            obs[name] = pose.astype(np.float32)
        bool(data.body(names[0]).xpos[2] > 0.07)

    return step


def pusher(worlds: int) -> Callable[[], Any]:
    """One step of gymnasium's own vectorized Pusher."""
    import gymnasium

    env = gymnasium.make_vec("Pusher-v5", num_envs=worlds, vectorization_mode="sync")
    env.reset(seed=0)
    actions = np.zeros((worlds, 7), np.float32)
    return lambda: env.step(actions)


def robosuite_rate(python: str, seconds: float) -> dict[str, Any]:
    """Control steps a second of robosuite's Lift, state only, run by the Python of another environment."""
    code = ROBOSUITE.replace("SECONDS", str(seconds))
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])
