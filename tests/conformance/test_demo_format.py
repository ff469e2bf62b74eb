"""The shipped conformance kit over every demo format; a new kind is covered by registering it and adding a sample.

Samples are made without our writers (`tests/demo_samples.py`). Each is also written in every format that can be written.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from robopolicy.components import ConfigError, component, kinds
from robopolicy.demos.formats import convert, demo_format, open_demos
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.testing.demo_format import CHECKS, WRITER_CHECKS
from robopolicy.types import ActionSpec, Demo, DemoFormatError
from tests.demo_samples import (
    images,
    write_act,
    write_lerobot,
    write_libero,
    write_minari,
    write_minari_arrow,
    write_robomimic,
)


def write_native(path: Path) -> Path:
    """Our own file with every field that a Demo has, and an observation `qpos` so that ACT takes it."""
    spec = ActionSpec(arm=[0, 1, 3], gripper=[2], kind="delta", space="ee", rate_hz=15.0)
    with DemoWriter(path, action_spec=spec, env_args={"env_name": "Lift"}, attributes={"renderer": "ray"}) as writer:
        for index, steps in enumerate((8, 5, 6)):
            rng = np.random.default_rng(index)
            rows = rng.uniform(-1, 1, (steps, 4))
            rows[:, 2] = np.where(np.arange(steps) < 3, -1.0, 1.0)
            demo = Demo(
                f"demo_{index}",
                {"qpos": rng.normal(size=(steps, 3)), "front": images(steps, seed=index)},
                rows,
                instruction=f"lift cube {index}",
                executed_actions=rows + 0.1,
                rewards=rng.normal(size=steps),
                dones=np.arange(steps) == steps - 1,
                states=rng.normal(size=(steps, 5)),
                tokens=rng.normal(size=(steps, 4, 6)).astype(np.float16),
                seed=index,
                attributes={"operator": "A", "mass": 0.2},
            )
            writer.write(demo)
        writer.write_filter_key("train", ["demo_0", "demo_2"])
    return path


SAMPLES = {
    "robomimic": {
        "ours": lambda folder: write_native(folder / "ours.hdf5"),
        "robomimic": lambda folder: write_robomimic(folder / "demos.hdf5"),
    },
    "libero": {"libero": lambda folder: write_libero(folder / "task_demo.hdf5")},
    "act": {
        "act": lambda folder: write_act(folder / "act"),
        "act, jpeg": lambda folder: write_act(folder / "act", compressed=True),
    },
    "lerobot": {
        "lerobot v3.0": lambda folder: write_lerobot(folder / "set"),
        "lerobot v2.1": lambda folder: write_lerobot(folder / "set", "v2.1"),
    },
    "minari": {
        "minari": lambda folder: write_minari(folder / "pen"),
        "minari, arrow": lambda folder: write_minari_arrow(folder / "pen"),
        "minari, parquet": lambda folder: write_minari_arrow(folder / "pen", "parquet"),
    },
}
"""Kind -> what writes a set of it."""
SOURCES = [
    pytest.param(kind, make, id=name)
    for kind in kinds("demo_format")
    for name, make in SAMPLES.get(kind, {"no sample": None}).items()
]


def writers():
    """Every writable kind, with each combination of its options that the data depend on."""
    choices = {"version": ("v3.0", "v2.1"), "images": ("video", "png")}
    for kind in kinds("demo_format"):
        made = component("demo_format", kind)
        if hasattr(made.make, "write"):
            names = [name for name in choices if name in made.options.__dataclass_fields__]
            for values in product(*(choices[name] for name in names)):
                yield pytest.param(kind, dict(zip(names, values, strict=True)), id="-".join([kind, *values]))


@pytest.mark.parametrize(("kind", "make"), SOURCES)
@pytest.mark.parametrize("check", CHECKS)
def test_every_format_keeps_the_contract(kind, make, check, tmp_path):
    """Guards against: a reader that `check`, `convert` and training can't rely on."""
    check(demo_format(kind), make(tmp_path))


@pytest.mark.parametrize(("kind", "make"), SOURCES)
@pytest.mark.parametrize(("target", "options"), [*writers()])
@pytest.mark.parametrize("check", WRITER_CHECKS)
def test_every_writer_keeps_what_it_is_given(kind, make, target, options, check, tmp_path):
    """Guards against: a conversion that loses precision, order, masks or a key, which changes what is trained on."""
    source = make(tmp_path)
    with open_demos(source) as demos:
        has_qpos = "qpos" in demos.read(demos.names[0], keys=None).obs
    if target == "act" and not has_qpos:
        with pytest.raises(DemoFormatError, match="needs the observation qpos"):
            convert(source, tmp_path / "converted", target)
    else:
        check(demo_format(target, options), source)


def test_a_format_that_is_only_read_is_refused_as_target(tmp_path, tiny_demos):
    """Guards against: an AttributeError for `--format libero`."""
    with pytest.raises(ConfigError, match="'libero' can only be read; convert writes: act, lerobot, minari, robomimic"):
        convert(tiny_demos, tmp_path / "out", "libero")
