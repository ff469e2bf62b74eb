"""Options of the verbs that run the simulator: device, physics, number of worlds, randomization."""

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli.parsing import require
from robopolicy.components import ConfigError
from robopolicy.sim.randomization import RandomizationConfig

MAX_SEED = 2**62
"""Seeds are held as 64-bit integers."""


def add_simulator(parser: ArgumentParser) -> None:
    """Add `--device`, `--physics`, `--num-envs`, `--limits` and the `--randomization` table."""
    parser.add_argument(
        "--device", type=str, default="cpu", help="cpu, cuda or cuda:<n>: device of the policy and of the worlds"
    )
    parser.add_argument(
        "--physics",
        type=Literal["auto", "batch", "warp"],
        default="auto",
        help="batch: MuJoCo's C engine on the CPU, whatever --device; warp: mujoco_warp on --device; auto: by --device",
    )
    parser.add_argument("--num-envs", type=int, default=64, help="worlds simulated at once by each process")
    parser.add_argument(
        "--limits", type=bool, default=True, help="keep to the robot's limits; false shows what they cost"
    )
    parser.add_class_arguments(RandomizationConfig, "randomization")


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
