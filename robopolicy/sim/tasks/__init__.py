"""The simulator's tasks, by name."""

from robopolicy.sim.tasks.base import Setup, State, Task
from robopolicy.sim.tasks.chain import Chain
from robopolicy.sim.tasks.cubes import Lift, Place, Reach, Stack
from robopolicy.sim.tasks.drawer import Drawer
from robopolicy.sim.tasks.recall import LongRecall, Recall

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Reach, Lift, Place, Stack, Drawer, Recall, LongRecall, Chain)
}

__all__ = ["TASKS", "Setup", "State", "Task", "make_task"]


def make_task(name: str, **options: int) -> Task:
    """The task called `name`; options are the keyword arguments of its class."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r} in the simulator; it has: {', '.join(TASKS)}")
    return TASKS[name](**options)
