"""Worlds on a device, shared by the tests: one scene, so that its kernels are compiled once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robopolicy.sim.env import RobotVectorEnv

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique")
"""What makes torch wait for a device, or lets a value decide what is run."""


@pytest.fixture(scope="session")
def device_env() -> RobotVectorEnv:
    """Four worlds of `place` with a camera, simulated by Warp on the CPU."""
    pytest.importorskip("mujoco_warp", reason="this physics needs the extra 'sim'")
    env = RobotVectorEnv("place", 4, physics="warp", cameras=("front",), image_size=32)
    env.reset(seed=0)
    for _ in range(2):  # the first step compiles, the second is captured
        env.step(torch.zeros(4, 7))
    return env


class _Unwaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in WAITS, f"{name} waits for the device"
        indices = args[1] if name in ("index", "index_put_", "_index_put_impl_") else ()
        assert all(index is None or index.dtype is not torch.bool for index in indices), "a mask as index waits"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def unwaiting() -> Callable[[], Iterator[None]]:
    """A context in which torch may not wait for a device."""

    @contextmanager
    def context() -> Iterator[None]:
        with _Unwaiting():
            yield

    return context
