"""Fixtures shared by all tests: a small demo file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.types import ActionSpec, Demo

TINY_LENGTHS = (12, 9, 15, 7, 11)
INSTRUCTIONS = ("lift the red cube", "lift the blue cube")


def _demo(number: int, steps: int = 10, image_size: int = 16) -> Demo:
    """A demo with random content that depends on its number only."""
    rng = np.random.default_rng(number)
    gripper = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)[:, None]
    return Demo(
        name=f"demo_{number}",
        obs={
            "ee_pose": rng.normal(size=(steps, 7)).astype(np.float32),
            "gripper": rng.uniform(0, 0.08, size=(steps, 1)).astype(np.float32),
            "cube_red": rng.normal(size=(steps, 3)).astype(np.float32),
            "front": rng.integers(0, 256, size=(steps, image_size, image_size, 3), dtype=np.uint8),
        },
        actions=np.concatenate([rng.uniform(-1, 1, size=(steps, 6)), gripper], axis=1).astype(np.float32),
        instruction=INSTRUCTIONS[number % 2],
        rewards=np.arange(steps) / steps,
        dones=np.arange(steps) == steps - 1,
        seed=number,
    )


@pytest.fixture(scope="session")
def make_demo() -> Callable[..., Demo]:
    """`make_demo(number, steps=10, image_size=16)`: a demo whose content depends on its number only."""
    return _demo


@pytest.fixture(scope="session")
def tiny_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a file of five demos of 7 to 15 steps: three low-dimensional keys, a 16x16 camera, instructions, masks."""
    path = tmp_path_factory.mktemp("demos") / "tiny.hdf5"
    with DemoWriter(path, action_spec=ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)) as writer:
        for number, steps in enumerate(TINY_LENGTHS):
            writer.write(_demo(number, steps))
        writer.write_filter_key("train", [f"demo_{number}" for number in range(4)])
        writer.write_filter_key("valid", ["demo_4"])
    return path


@pytest.fixture
def demo_file(tiny_demos: Path) -> Iterator[DemoFile]:
    """The file of `tiny_demos`, opened."""
    with DemoFile(tiny_demos) as file:
        yield file
