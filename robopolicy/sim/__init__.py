"""Our MuJoCo simulator: scene, physics, tasks, renderer, environments, scripted experts.

Importing this package registers each task with gymnasium, as `robopolicy/<Task>-v0`. The task of a plug-in is registered with
gymnasium when the plug-in registers it.
"""

import gymnasium

from robopolicy.components import kinds, on_register


def register_environment(task: str) -> None:
    """Register a task for `gymnasium.make` and `gymnasium.make_vec`; the environments keep their own time limit."""
    name = f"robopolicy/{task.capitalize()}-v0"
    if name in gymnasium.registry:  # a kind found by its file's name registers again when the file is imported
        return
    gymnasium.register(
        id=name,
        entry_point="robopolicy.sim.single_env:RobotEnv",
        vector_entry_point="robopolicy.sim.env:RobotVectorEnv",
        disable_env_checker=True,
        kwargs={"task": task},
    )


for name in kinds("task"):
    register_environment(name)
on_register("task", register_environment)
