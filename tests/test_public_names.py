"""The package's public names: `robopolicy/__init__.py`."""

import inspect
import subprocess
import sys

import pytest

import robopolicy

LIGHT = "import sys, robopolicy, robopolicy.types; {use}; print(*(name for name in {heavy} if name in sys.modules))"


def imported(use: str, heavy: tuple[str, ...]) -> str:
    code = LIGHT.format(use=use, heavy=heavy)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_and_its_client_import_no_torch():
    """Guards against: a client that can't be imported on a robot without torch."""
    heavy = ("torch", "lightning", "h5py", "mujoco", "jsonargparse")
    assert imported("import robopolicy.client", heavy) == ""


def test_a_name_is_there_when_it_is_used():
    """Guards against: a lazy name that resolves to nothing, and fails at the user's desk."""
    for name in ("ActionSpec", "Chunk", "PolicyHead", "action_loss", "load_policy", "save_policy", "ChunkPolicy"):
        assert getattr(robopolicy, name).__name__ == name
        assert name in dir(robopolicy)


def test_a_star_import_and_completion_show_the_public_names_alone():
    """Guards against: a notebook whose completion is full of the package's own imports."""
    names: dict[str, object] = {}
    exec("from robopolicy import *", names)
    assert set(names) - {"__builtins__"} == set(robopolicy.__all__)
    shown = {name for name in dir(robopolicy) if not name.startswith("_")}
    assert shown >= set(robopolicy.__all__)
    assert all(inspect.ismodule(getattr(robopolicy, name)) for name in shown - set(robopolicy.__all__))


def test_an_unknown_name_is_refused_with_a_list():
    """Guards against: a typo whose error names no choices."""
    with pytest.raises(AttributeError, match=r"robopolicy has no 'PolicyHed'. It has: .*PolicyHead"):
        robopolicy.PolicyHed  # noqa: B018
