"""Options of the verbs that run the simulator: device, physics, number of worlds, randomization."""

from typing import Any, Literal

from jsonargparse import Namespace

from robopolicy.cli.parsing import Option, require
from robopolicy.components import ConfigError
from robopolicy.sim.randomization import RandomizationConfig

MAX_SEED = 2**62
"""Seeds are held as 64-bit integers."""


SIMULATOR: tuple[Option, ...] = (
    ("--device", str, "cpu", "cpu, cuda or cuda:<n>: device of the policy and of the worlds"),
    (
        "--physics",
        Literal["auto", "batch", "warp"],
        "auto",
        "batch: MuJoCo's C engine on the CPU, whatever --device; warp: mujoco_warp on --device; auto: by --device",
    ),
    ("--num-envs", int, 64, "worlds simulated at once by each process"),
    ("--limits", bool, True, "keep to the robot's limits; false shows what they cost"),
    ("randomization", RandomizationConfig, None, ""),
)
"""Options of every verb that runs the simulator."""


def check_simulator(options: Namespace) -> None:
    """Check the numbers of episodes, seeds and worlds.

    Raises:
        ConfigError: in one line that names the option.
    """
    require(options, 1, "episodes", "num_envs")
    require(options, 0, "seed")
    if options.seed + options.episodes > MAX_SEED:
        raise ConfigError(f"--seed is {options.seed}; expected at most {MAX_SEED - options.episodes}")


def simulator_facts(options: Namespace) -> dict[str, Any]:
    """The simulator's options, as results and demo files record them."""
    return {
        "device": options.device,
        "physics": options.physics,
        "limits": options.limits,
        "randomization": vars(options.randomization),
    }


def simulator_options(options: Namespace, device: str) -> dict[str, Any]:
    """Keyword arguments of `RobotVectorEnv`; `device` is this process's own."""
    on_host = options.physics == "batch"
    return {
        "device": "cpu" if on_host else device,
        "physics": options.physics,
        "randomization": options.randomization,
        "limits": options.limits,
    }
