"""The simulator's tasks: one file each, found by name."""

from typing import Any

from robopolicy.components import build, options_from
from robopolicy.sim.tasks.base import Setup, State, Task

__all__ = ["Setup", "State", "Task", "make_task"]


def make_task(name: str, **options: Any) -> Task:
    """The task called `name`; options are the fields of its options.

    Raises:
        ConfigError: there is no such task, or it has no such option; those that exist are listed.
    """
    task = build(options_from("task", name, options))
    task.name = name
    return task
