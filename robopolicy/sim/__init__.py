"""Our MuJoCo simulator: scene, physics, tasks, renderer, environments, scripted experts.

Importing it registers each task with gymnasium, as `robopolicy/<Task>-v0`.
"""

import gymnasium

from robopolicy.sim.tasks import TASKS


def register_environments() -> None:
    """Register every task for `gymnasium.make` and `gymnasium.make_vec`; the environments keep their own time limit."""
    for name in TASKS:
        gymnasium.register(
            id=f"robopolicy/{name.capitalize()}-v0",
            entry_point="robopolicy.sim.single_env:RobotEnv",
            vector_entry_point="robopolicy.sim.env:RobotVectorEnv",
            disable_env_checker=True,
            kwargs={"task": name},
        )


register_environments()
