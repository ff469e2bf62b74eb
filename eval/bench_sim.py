"""Speed of the simulator: many worlds a call, beside what one would write by hand.

Rows: control steps a second of the `lift` environment (physics, damped least squares, observation, success) with 1, 2
threads; the same with a streaming policy head in the loop; the same with ray-traced pictures; and the peers:

    mj_step          nothing but the physics steps of one world, in a Python loop: the ceiling for one core
    plain loop       one world as one writes it: mj_step, mj_jacSite, np.linalg.solve, a dictionary of observations
    Pusher (sync)    gymnasium's own vectorized MuJoCo environment, with `--pusher` (another, smaller model)

`per core` is the share of mj_step's rate that is left, by CPU time and not by the clock, so that a busy machine does
not change it. Each rate is the best of several repetitions.

    python eval/bench_sim.py [--worlds 1 16 128 512] [--image-sizes 64 128] [--seconds 1] [--pusher] [--json FILE]
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mujoco
import numpy as np
import torch
from bench_table import bar, show

from robopolicy import ActionSpec, PolicyHead
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.scene import ARM_JOINTS, CAMERAS

REPETITIONS = 3
OPEN = np.array([0.0, 0, 0, 0, 0, 0, -1])


def rate(step: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Most calls per second seen, by the clock and by CPU time."""
    step()
    by_clock, by_cpu = [], []
    for _ in range(REPETITIONS):
        calls, began, began_cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds / REPETITIONS:
            step()
            calls += 1
        by_clock.append(calls / (time.perf_counter() - began))
        by_cpu.append(calls / (time.process_time() - began_cpu))
    return max(by_clock), max(by_cpu)


def row(
    what: str, worlds: int, threads: int, rates: tuple[float, float], ceiling: float | None = None
) -> dict[str, Any]:
    """One line of the table; `rates` are calls a second, each a control step of all worlds."""
    by_clock, by_cpu = rates
    values = {"what": what, "worlds": worlds, "threads": threads, "env steps/s": round(by_clock * worlds)}
    values["physics steps/s"] = round(by_clock * worlds * 10)
    if ceiling is not None:
        values["per core"] = by_cpu * worlds / ceiling
    return values


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

    def step() -> None:
        action = np.clip(OPEN, -1, 1)
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


def batched(worlds: int, threads: int, cameras: tuple[str, ...] = (), image_size: int = 64) -> Callable[[], None]:
    """One control step of our environment."""
    env = RobotVectorEnv("lift", worlds, num_threads=threads, cameras=cameras, image_size=image_size)
    env.reset(seed=0)
    actions = np.repeat(OPEN[None], worlds, 0)
    return lambda: env.step(actions)


def with_policy(worlds: int, threads: int) -> Callable[[], None]:
    """One control step with a streaming 2 x 256 LSTM head (window 8, chunk 8) deciding the actions from state tokens."""
    env = RobotVectorEnv("lift", worlds, num_threads=threads)
    obs, _ = env.reset(seed=0)
    head = PolicyHead(10, ActionSpec(arm=6, gripper=1), window=8, chunk=8, layers=2, hidden=256, head_widths=(256, 128))
    head.eval()
    names = env.scene.objects
    loop = {"obs": obs, "state": head.initial_state(worlds)}

    def step() -> None:
        with torch.inference_mode():
            tokens = torch.from_numpy(np.stack([loop["obs"][name] for name in names], 1))
            chunk, loop["state"] = head.step(tokens, loop["state"])
            arm, gripper = chunk.arm[:, 0].numpy(), chunk.gripper_logit[:, 0].numpy()
        loop["obs"], *_ = env.step(np.concatenate([0.1 * arm, np.sign(gripper)], 1))

    return step


def pusher(worlds: int) -> Callable[[], None]:
    """One step of gymnasium's own vectorized Pusher."""
    import gymnasium

    env = gymnasium.make_vec("Pusher-v5", num_envs=worlds, vectorization_mode="sync")
    env.reset(seed=0)
    actions = np.zeros((worlds, 7), np.float32)
    return lambda: env.step(actions)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 16, 128, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--image-sizes", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--image-worlds", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--pusher", action="store_true", help="gymnasium's Pusher-v5, too")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)

    bare = rate(bare_physics(), args.seconds)
    ceiling = bare[1]
    rows = [row("mj_step", 1, 1, bare, ceiling), row("plain loop", 1, 1, rate(plain_loop(), args.seconds), ceiling)]
    if args.pusher:
        rows += [row("Pusher (sync)", 16, 1, rate(pusher(16), args.seconds))]
    shares = {}
    for threads in args.threads:
        for worlds in args.worlds:
            rows.append(row("ours", worlds, threads, rate(batched(worlds, threads), args.seconds), ceiling))
            shares[worlds, threads] = rows[-1]["per core"]
            rows.append(
                row("ours + policy", worlds, threads, rate(with_policy(worlds, threads), args.seconds), ceiling)
            )
    for image_size in args.image_sizes:
        for cameras in (CAMERAS[:1], CAMERAS):
            worlds = args.image_worlds
            rates = rate(batched(worlds, max(args.threads), cameras, image_size), 3 * args.seconds)
            rows.append(row(f"ours + {' + '.join(cameras)} {image_size} px", worlds, max(args.threads), rates))
            rows[-1]["pictures/s"] = round(rates[0] * worlds * len(cameras))
    most = max((worlds for worlds, _ in shares), default=0)
    bars = []
    if most >= 128:
        best = max(share for (worlds, threads), share in shares.items() if worlds >= 128 and threads == 1)
        bars.append(bar("share of mj_step's rate per core, >= 128 worlds, state only", best, 0.85))
    if (1, 1) in shares:
        bars.append(bar("share of mj_step's rate per core, 1 world, state only", shares[1, 1], 0.45))
    show(rows, bars, args.json)
    if not torch.cuda.is_available():
        print("no GPU here: figures of the GPU are missing")


if __name__ == "__main__":
    main()
