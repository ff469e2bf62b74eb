"""Speed of the simulator: many worlds a call, on the CPU and on a GPU, beside what one would write by hand.

    batch            MuJoCo's C engine on the CPU, 1 and 2 threads
    warp             mujoco_warp, every call a captured graph: on the GPU where there is one, else on the CPU
    physics          nothing but the physics; `env` adds control, observation and success; then images by the ray tracer,
                     and a complete policy in the loop: tokens, 2 x 256 LSTM (window 8, chunk 8), executor

and the peers:

    mj_step          nothing but the physics steps of one world, in a Python loop: the ceiling for one core
    plain loop       one world as one writes it: mj_step, mj_jacSite, np.linalg.solve, a dictionary of observations
    Pusher (sync)    gymnasium's own vectorized MuJoCo environment (another, smaller model), with `--pusher`
    robosuite Lift   its own Panda, OSC_POSE and state, with `--robosuite PYTHON` of an environment that has it

`per core` is the share of mj_step's rate that is left, by CPU time and not by the clock, each repetition measured right
after one of mj_step's and the median taken, so that a busy machine changes it little. Each rate is the best of several
repetitions. `ready s` is the time until the first step is captured, compiling or loading kernels included; `peak MiB` the
most memory used so far, on the GPU by torch and Warp, on the CPU by this process.

    python eval/bench_sim.py [--worlds 1 16 128 512] [--warp-worlds ...] [--image-sizes 64 128] [--seconds 1] [--json FILE]
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from bench_table import bar, show
from sim_peers import bare_physics, plain_loop, pusher, robosuite_rate

from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.model.normalization import Statistics
from robopolicy.model.texts import Vocabulary
from robopolicy.rollout.actor import PolicyActor
from robopolicy.sim.device_rollout import DevicePolicyActor
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.types import ActionSpec, ArraySpec

REPETITIONS = 3
SHARE_PAIRS = 15
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
WARP_WORLDS = (1, 16, 128, 1024, 4096, 16384) if ON_GPU else (1, 16, 128)
SPEC = ActionSpec(arm=6, gripper=1, gripper_values=((-1.0, 1.0),), kind="delta", space="ee", rate_hz=20.0)


def rate(step: Callable[[], Any], seconds: float) -> float:
    """Most calls per second seen, by the clock; a GPU is waited for at the end of each repetition."""
    step()
    rates = []
    for _ in range(REPETITIONS):
        _wait()
        calls, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds / REPETITIONS:
            step()
            calls += 1
            if ON_GPU and calls % 8 == 0:
                _wait()  # or the clock would measure how fast work is queued
        _wait()
        rates.append(calls / (time.perf_counter() - began))
    return max(rates)


def share(step: Callable[[], Any], bare: Callable[[], Any], worlds: int, seconds: float) -> float:
    """What is left of the rate of `bare` physics, per CPU-second of one world."""
    step()
    ratios = []
    for _ in range(SHARE_PAIRS):
        costs = []
        for each, calls in ((bare, 40 * worlds), (step, 40)):
            calls = max(1, round(calls * seconds / worlds))
            began = time.process_time()
            for _ in range(calls):
                each()
            costs.append((time.process_time() - began) / calls)
        ratios.append(costs[0] * worlds / costs[1])
    return statistics.median(ratios)


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Most memory used so far [MiB]: torch's and Warp's on the GPU, this process's on the CPU."""
    if not ON_GPU:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    import warp

    return (torch.cuda.max_memory_allocated() + warp.get_mempool_used_mem_high("cuda")) / 2**20


def row(what: str, worlds: int, where: str, by_clock: float, left: float | None = None, **more: Any) -> dict[str, Any]:
    """One line of the table; `by_clock` are calls a second, each a control step of all worlds."""
    values = {"what": what, "worlds": worlds, "on": where, "env steps/s": round(by_clock * worlds)}
    values["physics steps/s"] = round(by_clock * worlds * 10)
    if left is not None:
        values["per core"] = left
    values |= more
    print("  ".join(f"{name} {_short(value)}" for name, value in values.items()), flush=True)
    return values


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def make_env(worlds: int, physics: str, threads: int = 1, cameras: tuple[str, ...] = (), size: int = 64) -> Any:
    """Worlds of `lift`, at their start."""
    device = "cpu" if physics == "batch" else DEVICE
    env = RobotVectorEnv(
        "lift", worlds, device=device, physics=physics, num_threads=threads, cameras=cameras, image_size=size
    )
    env.reset(seed=0)
    return env


def stepping(env: RobotVectorEnv) -> Callable[[], Any]:
    """One control step of the environment at rest."""
    actions: Any = np.repeat(np.array([[0.0, 0, 0, 0, 0, 0, -1]]), env.num_envs, 0)
    if env.on_device:
        actions = torch.from_numpy(actions).float().to(DEVICE)
    return lambda: env.step(actions)


def with_policy(env: RobotVectorEnv) -> Callable[[], None]:
    """One control step with a complete policy of random weights deciding the actions."""
    encoder = {"encoder.kind": "pixels" if env.cameras else "keys", "encoder.width": 64, "encoder.hidden": 64}
    size = env.observation_space[env.cameras[0]].shape[1] if env.cameras else 0
    obs = {camera: ArraySpec((size, size, 3), "uint8") for camera in env.cameras} or {
        name: ArraySpec((10,)) for name in env.scene.objects
    }
    rows = np.random.default_rng(0).normal(size=(50, 10))
    low = {key: Statistics.of(rows) for key, spec in obs.items() if not spec.is_image}
    words, config = Vocabulary.of(env.sentences.texts), ExperimentConfig().change(encoder)
    action = Statistics.of(np.sign(rows[:, :7]))
    policy = (
        build_policy(config, DemoFacts(SPEC, obs, words, obs_statistics=low, action_statistics=action)).eval().freeze()
    )
    loop: dict[str, Any] = {"obs": env.observe()}
    if env.on_device:
        on_device = DevicePolicyActor(policy.to(DEVICE), env, RecedingOptions())

        def step() -> None:
            loop["obs"], *_ = env.step(on_device.act(loop["obs"], env.instruction_id)[1])
    else:
        on_host = PolicyActor(policy, env.num_envs, env.control_dt, RecedingOptions())

        def step() -> None:
            loop["obs"], *_ = env.step(on_host.act(loop["obs"], env.instructions)[1])

    return step


def batch_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The C engine on the CPU."""
    rows, bare = [], bare_physics()
    for threads in args.threads:
        for worlds in args.worlds:
            env = make_env(worlds, "batch", threads)
            where = f"cpu x {threads}"
            for what, step in (("batch env", stepping(env)), ("batch env + policy", with_policy(env))):
                left = share(step, bare, worlds, args.seconds)
                rows.append(row(what, worlds, where, rate(step, args.seconds), left))
    for size in args.image_sizes:
        for cameras in (("front",), ("front", "wrist")):
            worlds, threads = args.image_worlds, max(args.threads)
            env = make_env(worlds, "batch", threads, cameras, size)
            rates = rate(stepping(env), 3 * args.seconds)
            images = {"images/s": round(rates * worlds * len(cameras))}
            rows.append(row(f"batch env + {len(cameras)} x {size} px", worlds, f"cpu x {threads}", rates, **images))
    return rows


def warp_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """mujoco_warp, on the GPU where there is one."""
    rows: list[dict[str, Any]] = []
    for worlds in args.warp_worlds:
        for size in (0, *args.image_sizes):
            if size and not ON_GPU and worlds > args.image_worlds:
                continue
            try:
                rows += _warp_rows(worlds, size, args.seconds)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"warp {worlds} worlds, {size} px: {str(error).splitlines()[0]}", flush=True)
    return rows


def _warp_rows(worlds: int, size: int, seconds: float) -> list[dict[str, Any]]:
    """Physics alone, environment and policy, without images (size 0) or with those of one camera."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    env = make_env(worlds, "warp", cameras=("front",) if size else (), size=size or 64)
    step = stepping(env)
    for _ in range(2):
        step()
    _wait()
    ready, rows = {"ready s": time.perf_counter() - began}, []
    images = f" + 1 x {size} px" if size else ""
    if not size:
        target = torch.zeros(worlds, env.scene.model.nu, device=DEVICE)
        rows.append(row("warp physics", worlds, DEVICE, rate(lambda: env.physics.step(target), seconds), **ready))
    rows.append(row(f"warp env{images}", worlds, DEVICE, rate(step, seconds), **ready))
    rates = rate(with_policy(env), seconds)
    rows.append(row(f"warp env{images} + policy", worlds, DEVICE, rates, **{"peak MiB": round(peak_mib())}))
    return rows


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals that these rows can tell of."""
    shares = {r["worlds"]: r["per core"] for r in rows if r["what"] == "batch env" and r["on"] == "cpu x 1"}
    goals = []
    if many := [share for worlds, share in shares.items() if worlds >= 128]:
        goals.append(bar("share of mj_step's rate per core, >= 128 worlds, state only", max(many), 0.85))
    if 1 in shares:
        goals.append(bar("share of mj_step's rate per core, 1 world, state only", shares[1], 0.45))
    if ON_GPU:
        physics = [r["physics steps/s"] for r in rows if r["what"] == "warp env"]
        frames = [
            r["env steps/s"] for r in rows if r["what"] == "warp env + 1 x 64 px + policy" and r["worlds"] == 4096
        ]
        goals.append(bar("physics steps/s on the GPU, state only", max(physics, default=0), 5e6))
        goals.append(bar("env frames/s, one 64 px camera and the policy, 4096 worlds", max(frames, default=0), 1e5))
    return goals


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 16, 128, 512], help="for batch")
    parser.add_argument("--warp-worlds", type=int, nargs="*", default=WARP_WORLDS, help="for warp; those that fit")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--image-sizes", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--image-worlds", type=int, default=64, help="worlds with images on the CPU, at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--pusher", action="store_true", help="gymnasium's Pusher-v5, too")
    parser.add_argument("--robosuite", default=None, metavar="PYTHON", help="interpreter that has robosuite")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)

    bare, plain = bare_physics(), plain_loop()
    rows = [row("mj_step", 1, "cpu x 1", rate(bare, args.seconds), 1.0)]
    rows.append(row("plain loop", 1, "cpu x 1", rate(plain, args.seconds), share(plain, bare, 1, args.seconds)))
    if args.pusher:
        rows.append(row("Pusher (sync)", 16, "cpu x 1", rate(pusher(16), args.seconds)))
    if args.robosuite:
        found = robosuite_rate(args.robosuite, 3 * args.seconds)
        rows.append(row(f"robosuite {found['version']} Lift", 1, "cpu x 1", found["rate"]))
    rows += batch_rows(args) + warp_rows(args)
    print()
    show(rows, bars(rows), args.json)
    if not ON_GPU:
        print("no GPU here: figures of the GPU are missing")


if __name__ == "__main__":
    main()
