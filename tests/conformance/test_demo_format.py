"""The contract of every demo format: what is read, written in another format and read again is the same.

Families are read from files made without our writers (`tests/demo_samples.py`); each is written in every format that can
be written. Video is lossy and compared within a tolerance; what a format can't hold must be named in its notes.
"""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from robopolicy.demos.formats import (
    FORMATS,
    WRITERS,
    DemoFormat,
    DemoReader,
    WritableFormat,
    action_spec_of,
    convert,
    open_demos,
)
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import ActionSpec, Demo, DemoFormatError
from tests.demo_samples import (
    pictures,
    write_act,
    write_lerobot,
    write_libero,
    write_minari,
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
                {"qpos": rng.normal(size=(steps, 3)), "front": pictures(steps, seed=index)},
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


FAMILIES = {
    "native": lambda folder: write_native(folder / "ours.hdf5"),
    "robomimic": lambda folder: write_robomimic(folder / "demos.hdf5"),
    "libero": lambda folder: write_libero(folder / "task_demo.hdf5"),
    "act": lambda folder: write_act(folder / "act"),
    "act, jpeg": lambda folder: write_act(folder / "act", compressed=True),
    "lerobot v3.0": lambda folder: write_lerobot(folder / "set"),
    "lerobot v2.1": lambda folder: write_lerobot(folder / "set", "v2.1"),
    "minari": lambda folder: write_minari(folder / "pen"),
}
VIDEO_TOLERANCE = 6.0
"""Mean absolute difference of a channel value (0 to 255) that H.264 at crf 18 with half the colour resolution may make."""
UNNAMED = {"name", "obs", "attributes"}


@pytest.fixture(params=FAMILIES)
def source(request, tmp_path):
    """A file or folder of one family."""
    return FAMILIES[request.param](tmp_path)


@pytest.fixture(params=[writer.name for writer in WRITERS])
def writer(request):
    """A format that can be written."""
    return next(known for known in WRITERS if known.name == request.param)


def assert_same(first: Demo, second: Demo, lossy: bool, notes: str) -> None:
    """Every field that the second carries equals the first's; one that it lacks is named in the notes."""
    for name in (field.name for field in fields(Demo) if field.name not in UNNAMED):
        one, other = getattr(first, name), getattr(second, name)
        if one is not None and other is None:
            assert name.rstrip("s") in notes, f"{name} was dropped without a word"
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype or {one.dtype.kind, other.dtype.kind} <= {"b", "i", "u"}, name
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            assert one == other, name
    assert set(first.obs) == set(second.obs)
    for key, values in first.obs.items():
        assert values.dtype == second.obs[key].dtype, key
        if lossy and values.ndim == 4:
            assert np.abs(values.astype(int) - second.obs[key]).mean() < VIDEO_TOLERANCE, key
        else:
            np.testing.assert_array_equal(values, second.obs[key], err_msg=key)
    for key in set(first.attributes) - set(second.attributes):
        assert key in notes, f"the attribute {key} was dropped without a word"


def assert_said(missing: set[str], notes: str) -> None:
    """Attributes of the whole set that are gone are named; the number of steps and the action spec have their own places."""
    unsaid = [key for key in missing - {"total", "action_spec"} if key not in notes]
    assert not unsaid, f"{unsaid} was dropped without a word"


def test_reading_writing_and_reading_again_is_the_identity(source, writer, tmp_path):
    """A conversion that loses precision, order, masks or a key would change what is trained on."""
    target = tmp_path / "converted"
    with open_demos(source) as before:
        if writer.name == "act" and "qpos" not in before.read(before.names[0]).obs:
            with pytest.raises(DemoFormatError, match="needs the observation qpos"):
                convert(source, target, writer.name)
            return
        notes = "\n".join(convert(source, target, writer.name))
        with open_demos(target) as after:
            assert list(after.names) == list(before.names)
            for name in before.names:
                assert_same(before.read(name), after.read(name), writer.name in ("lerobot", "lerobot-v2.1"), notes)
            if writer.name != "act":  # an ACT episode says nothing of its actions
                assert action_spec_of(after) == action_spec_of(before), "a lost rate makes a chunk last another time"
            assert_said({key for key, value in before.attributes.items() if value} - set(after.attributes), notes)
            kept = {key: list(names) for key, names in after.filter_keys.items()}
            assert kept == {key: list(names) for key, names in before.filter_keys.items()} or "filter keys" in notes


def test_a_reader_reads_only_the_keys_asked_for(source):
    """The default rule reads all actions; it must not decode every picture for that."""
    with open_demos(source) as demos:
        whole = demos.read(demos.names[0])
        low_dim = [key for key, values in whole.obs.items() if values.ndim == 2]
        assert dict(demos.read(demos.names[0], keys=()).obs) == {}
        assert set(demos.read(demos.names[0], keys=low_dim).obs) == set(low_dim)
        with pytest.raises(DemoFormatError, match="no nothing_such among the observations; it has"):
            demos.read(demos.names[0], keys=("nothing_such",))
        with pytest.raises(DemoFormatError, match="no demo_99; it has: demo_0"):
            demos.read("demo_99")


def test_a_reader_keeps_its_protocol(source):
    """`check`, `convert` and training rely on nothing else."""
    with open_demos(source) as demos:
        assert isinstance(demos, DemoReader)
        assert all(isinstance(note, str) and "\n" not in note for note in demos.notes)
        times = demos.clock(demos.names[0])
        assert times is None or len(times) == len(demos.read(demos.names[0]))


def test_formats_keep_their_protocols():
    """A format without one of its methods would fail at the user's file."""
    assert all(isinstance(known, DemoFormat) for known in FORMATS)
    assert all(isinstance(known, WritableFormat) for known in WRITERS)
    assert len({known.name for known in WRITERS}) == len(WRITERS)
