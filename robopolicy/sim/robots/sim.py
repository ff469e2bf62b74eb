"""Our simulated arms as a robot of `robopolicy run`: in real time, or on a simulated clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.robots.base import RobotContext
from robopolicy.sim.robot import ProcessOptions, SimRobot
from robopolicy.sim.stepped import SteppedRobot, WorldOptions
from robopolicy.sim.worlds import PRIVILEGED


@dataclass(frozen=True)
class SimOptions(Options):
    """Options of `sim`."""

    task: str | None = None
    """Task of the simulator; null: that of the policy's demos."""
    seed: int | None = None
    """Seed of the episode; null: that of the replayed episode, else 10000."""
    command_hz: float = option(1000.0, "> 0")
    """Commands a second."""
    realtime: bool = True
    """Whether the world runs in real time, in its own process; false: on a simulated clock, without sleeping."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task, such as {delay_steps: 20}."""


@register("robot", "sim", SimOptions)
def make_sim(options: SimOptions, context: RobotContext) -> SimRobot | SteppedRobot:
    """One world of a simulator task."""
    task = options.task or context.task
    if task is None:
        raise ConfigError("the policy's demos name no task; give --task")
    seed = next(seed for seed in (options.seed, context.seed, 10000) if seed is not None)
    world = WorldOptions(
        task, seed, context.cameras, context.image_size, 1 / options.command_hz, dict(options.task_options)
    )
    robot: SimRobot | SteppedRobot
    if options.realtime:
        robot = SimRobot(world, ProcessOptions(context.deadline_s / 5, context.deadline_s, context.priority))
    else:
        robot = SteppedRobot(world)
    kwargs = {"task": task, "cameras": list(context.cameras), "image_size": context.image_size}
    robot.env_args = {"env_name": f"robopolicy/{task}", "type": 2, "env_kwargs": kwargs, "seed": seed}
    robot.env_args["privileged"] = list(PRIVILEGED)
    return robot
