"""The simulator for the verbs: its options, worlds for a policy, and a policy's success rate in them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from robopolicy.cli.parsing import Option, at_least
from robopolicy.components import ConfigError, require
from robopolicy.control.execution import ExecutionOptions
from robopolicy.model.policy import ChunkPolicy
from robopolicy.report.video import episode_images, write_video
from robopolicy.sim.randomization import Randomization
from robopolicy.types import Policy

if TYPE_CHECKING:  # needs MuJoCo
    from robopolicy.sim.env import RobotVectorEnv

MAX_SEED = 2**62
"""Upper bound of the seeds, which are held as 64-bit integers."""
SELECTION_SEED = 5_000_000
"""First seed of the episodes that measure a policy while it is trained; far from those of demos and of reported evaluations."""
SIMULATOR: tuple[Option, ...] = (
    ("--device", str, "cpu", "cpu, cuda or cuda:<n>: device of the policy and of the worlds"),
    (
        "--physics",
        Literal["auto", "batch", "warp"],
        "auto",
        "batch: MuJoCo's C engine on the CPU, whatever --device; warp: mujoco_warp on --device; auto: by --device",
    ),
    ("--num-envs", int, 64, "worlds simulated at once by each process"),
    ("--limits", bool, True, "apply the robot's limits; false measures what they cost"),
    ("--task-options", dict[str, Any], {}, "options of the task, such as '{delay_steps: 20}' for recall"),
    ("randomization", Randomization, None, ""),
)
"""Options of every verb that runs the simulator."""


def check_simulator(options: Namespace) -> None:
    """Check the numbers of episodes, seeds and worlds.

    Raises:
        ConfigError: in one line that names the option.
    """
    at_least(options, 1, "episodes", "num_envs")
    at_least(options, 0, "seed")
    if options.seed + options.episodes > MAX_SEED:
        raise ConfigError(f"--seed is {options.seed}; expected at most {MAX_SEED - options.episodes}")


def simulator_facts(options: Namespace) -> dict[str, Any]:
    """The simulator's options, as results and demo files record them."""
    return {
        "device": options.device,
        "physics": options.physics,
        "limits": options.limits,
        "randomization": vars(options.randomization),
        "task_options": options.task_options,
    }


def simulator_options(options: Namespace, device: str) -> dict[str, Any]:
    """Keyword arguments of `RobotVectorEnv`; `device` is this process's own."""
    return {
        "device": "cpu" if options.physics == "batch" else device,
        "physics": options.physics,
        "randomization": options.randomization,
        "limits": options.limits,
        "task_options": options.task_options,
    }


def options_on_host(options: Namespace) -> dict[str, Any]:
    """As `simulator_options`, for the worlds on the CPU in which a policy is trained.

    Raises:
        ConfigError: the options request the physics engine warp.
    """
    if options.physics == "warp":
        raise ConfigError("--physics warp: learning in closed loop steps its worlds with batch; leave --physics out")
    return {**simulator_options(options, "cpu"), "physics": "batch"}


def open_worlds(
    policy: Policy, task: str, count: int, simulator: Mapping[str, Any], cameras: Sequence[str] = ()
) -> "RobotVectorEnv":
    """Worlds with the policy's cameras, and further ones, whose images have the size that the policy reads.

    Args:
        policy: its `spec` gives the cameras and the image size.
        task: task of the simulator.
        count: number of worlds.
        simulator: further options, as `simulator_options` gives them.
        cameras: further cameras, such as those of an expert.
    """
    from robopolicy.sim.env import RobotVectorEnv

    shown = tuple(dict.fromkeys((*policy.spec.cameras, *cameras)))
    return RobotVectorEnv(task, count, cameras=shown, image_size=policy.spec.image_size, **simulator)


def filming(policy: Policy) -> tuple[str, ...]:
    """The camera that films a policy without cameras; empty if the policy has cameras."""
    return () if policy.spec.cameras else ("front",)


def success_in_simulator(
    task: str, episodes: int, simulator: Mapping[str, Any], execution: ExecutionOptions | None = None
) -> Callable[[Any], float]:
    """A function that measures a policy's success rate, on seeds that no demos, training rollouts or reported evaluations use.

    Args:
        task: task of the simulator.
        episodes: number of episodes; their seeds are consecutive, from `SELECTION_SEED` on.
        simulator: options of the worlds, as `simulator_options` gives them.
        execution: how chunks become actions; None: the options stored with the policy.
    """
    from robopolicy.sim.evaluation import evaluate

    def success_rate(policy: Any) -> float:
        seeds = range(SELECTION_SEED, SELECTION_SEED + episodes)
        with closing(open_worlds(policy, task, min(64, episodes), simulator)) as env:
            return evaluate(policy, env, seeds, execution).success_rate

    return success_rate


def film(policy: Policy, task: str, episodes: int, simulator: Mapping[str, Any], folder: Path) -> None:
    """Write videos of the first episodes that `success_in_simulator` runs, named by seed and outcome."""
    from robopolicy.sim.evaluation import evaluate

    seeds, filmed = range(SELECTION_SEED, SELECTION_SEED + episodes), []
    with closing(open_worlds(policy, task, episodes, simulator, filming(policy))) as env:
        evaluate(policy, env, seeds, record=True, sink=filmed)
    folder.mkdir(parents=True, exist_ok=True)
    for episode in filmed:
        name = f"{episode.seed}_{'success' if episode.success else 'failure'}.mp4"
        write_video(episode_images(episode), folder / name, fps=1 / env.control_dt)


def open_training_worlds(
    policy: ChunkPolicy, task: str, count: int, options: Namespace, cameras: Sequence[str] = ()
) -> "RobotVectorEnv":
    """As `open_worlds`, on the CPU, for a policy that is trained in them.

    Raises:
        ConfigError: the policy's actions do not fit the task.
    """
    env = open_worlds(policy, task, count, options_on_host(options), cameras)
    try:
        check_actions(policy, task, math.prod(env.single_action_space.shape or ()))
    except ConfigError:
        env.close()
        raise
    return env


def check_actions(policy: ChunkPolicy, task: str, width: int) -> None:
    """Refuse a policy whose actions do not fit the task.

    Raises:
        ConfigError: the number of columns differs, or the policy moves no gripper and the task needs one.
    """
    from robopolicy.sim.tasks import make_task

    spec = policy.action_spec
    require(spec.width == width, f"the policy gives {spec.width} action columns; task {task} takes {width}")
    if make_task(task).needs_gripper and not spec.gripper_width and not spec.continuous_gripper:
        raise ConfigError(
            f"the policy moves no gripper (its action columns: {spec.arm_width} arm, {len(spec.constant)} constant), which "
            f"task {task} needs; train on demos in which the gripper opens and closes"
        )
