"""What of the demo files is used: splits, keys, action columns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robopolicy.demos.check import check_file
from robopolicy.demos.formats import DemoReader, open_demos
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.demos.rows import DemoRows, load_rows
from robopolicy.experiment import ConfigError, DataConfig
from robopolicy.training.encode import require_one_encoder
from robopolicy.training.selection import choose_action_spec, choose_keys, split_names
from robopolicy.types import ActionSpec, Demo, DemoFormatError


class Stub(DemoReader):
    """A reader without demos: names and filter keys for splits, an action spec and facts for the columns."""

    format_name = "stub"

    def __init__(
        self,
        names: Sequence[str] = (),
        masks: Mapping[str, Sequence[str]] | None = None,
        spec: ActionSpec | None = None,
        facts: Mapping[str, Any] | None = None,
        path: str = "some.hdf5",
    ) -> None:
        super().__init__(Path(path))
        self.names, self.filter_keys = names, masks or {}
        self.action_spec, self.action_facts = spec, facts or {}

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """Never asked for."""
        raise AssertionError(name)


TEN = [f"demo_{number}" for number in range(10)]


@pytest.fixture
def reader(tiny_demos: Path) -> DemoReader:
    return open_demos(tiny_demos)


@pytest.fixture
def rows(reader: DemoReader) -> DemoRows:
    return load_rows([(reader, reader.names)], ("gripper",))


def test_the_files_filter_keys_are_honoured():
    """Guards against: a benchmark's split that is ignored, which makes its numbers incomparable."""
    masks = {"train": TEN[:6], "valid": TEN[6:8], "small": TEN[:2]}
    assert split_names(Stub(TEN, masks), DataConfig()) == (TEN[:6], TEN[6:8])
    assert split_names(Stub(TEN, masks), DataConfig(train_filter="small")) == (TEN[:2], TEN[6:8])
    assert split_names(Stub(TEN, masks), DataConfig(train_demos=3)) == (TEN[:3], TEN[6:8])
    assert split_names(Stub(TEN, {"valid": TEN[8:]}), DataConfig()) == (TEN[:8], TEN[8:])


def test_without_filter_keys_a_share_is_held_out_the_same_each_time():
    """Guards against: a split that changes with the training's seed, so that a repeated run sees its validation demos."""
    train, valid = split_names(Stub(TEN), DataConfig(valid_fraction=0.3))
    assert len(valid) == 3
    assert sorted(train + valid) == TEN
    assert split_names(Stub(TEN), DataConfig(valid_fraction=0.3)) == (train, valid)
    assert split_names(Stub(TEN), DataConfig(valid_fraction=0.0)) == (TEN, [])
    assert len(split_names(Stub(TEN[:5]), DataConfig())[1]) == 1
    assert split_names(Stub(TEN[:1]), DataConfig()) == (TEN[:1], [])


def test_a_split_that_can_not_be_made_is_refused():
    """Guards against: a misspelt filter key, which would silently train on everything."""
    masks = {"train": TEN[:6], "valid": TEN[5:8]}
    with pytest.raises(ConfigError, match=r"--data.train_filter tarin: some.hdf5 has no such .* it has: train, valid"):
        split_names(Stub(TEN, masks), DataConfig(train_filter="tarin"))
    with pytest.raises(ConfigError, match="demo_5 is in both train and valid"):
        split_names(Stub(TEN, masks), DataConfig())
    with pytest.raises(ConfigError, match="no training demo"):
        split_names(Stub(TEN, {"train": []}), DataConfig())


def test_by_default_every_vector_is_seen_and_privileged_keys_are_not(reader):
    """Guards against: a key meant for a loss only, from which the policy reads the position that it shall predict."""
    data = DataConfig(privileged_keys=("cube_red",))
    assert choose_keys(reader, "demo_0", data, False) == (["ee_pose", "gripper"], ["cube_red"])
    data = DataConfig(obs_keys=("gripper",), cameras=("front",))
    assert choose_keys(reader, "demo_0", data, False) == (["gripper", "front"], [])
    assert choose_keys(reader, "demo_0", DataConfig(obs_keys=()), True) == (["tokens"], [])


def test_a_missing_key_lists_those_that_are_present(reader):
    """Guards against: a misspelled key, the most common mistake, whose error does not show the names to choose from."""
    with pytest.raises(DemoFormatError, match=r"tiny.hdf5, demo_0: no camera 'wrist'; it has: front"):
        choose_keys(reader, "demo_0", DataConfig(cameras=("wrist",)), False)
    with pytest.raises(DemoFormatError, match=r"no key 'joints'; it has: cube_red, ee_pose, front, gripper"):
        choose_keys(reader, "demo_0", DataConfig(obs_keys=("joints",)), False)
    with pytest.raises(ConfigError, match="the policy would have no input"):
        choose_keys(reader, "demo_0", DataConfig(obs_keys=()), False)


def test_the_files_own_spec_is_taken_and_must_fit(reader, rows):
    """Guards against: a spec of another robot, which would send arm columns to the gripper."""
    assert choose_action_spec([reader], rows, DataConfig()) == reader.action_spec
    with pytest.raises(DemoFormatError, match="actions have 7 columns but the action spec 3"):
        choose_action_spec([Stub(spec=ActionSpec(arm=2, gripper=1))], rows, DataConfig())
    other = Stub(spec=replace(reader.action_spec, rate_hz=10.0), path="other.hdf5")
    with pytest.raises(DemoFormatError, match=r"other.hdf5 and tiny.hdf5 describe .*: rate_hz 10.0 and 20.0; "):
        choose_action_spec([reader, other], rows, DataConfig())


def test_without_one_the_default_rule_is_completed_by_what_the_format_knows(rows):
    """Guards against: a rate or kind that the format knows and the spec lacks."""
    spec = choose_action_spec([Stub(facts={"rate_hz": 20.0, "continuous_gripper": (5, 6)})], rows, DataConfig())
    assert spec.gripper_columns == (6,)
    assert spec.rate_hz == 20.0
    assert spec.continuous_gripper == (5,), "column 6 has two values, so it is binary"


def test_the_config_overrides_columns(rows):
    """Guards against: a gripper column that the user can't declare."""
    reader = Stub(spec=ActionSpec(arm=6, gripper=1, rate_hz=20.0, kind="delta"))
    spec = choose_action_spec([reader], rows, DataConfig(gripper=()))
    assert (spec.arm_columns, spec.gripper_columns) == (tuple(range(7)), ())
    assert (spec.rate_hz, spec.kind) == (20.0, "delta")
    with pytest.raises(ConfigError, match=r"--data.gripper 2: that column has 5\d values; a binary gripper has two"):
        choose_action_spec([reader], rows, DataConfig(gripper=(2,)))
    with pytest.raises(ConfigError, match=r"names column 7; actions have columns 0 .. 6"):
        choose_action_spec([reader], rows, DataConfig(gripper=(7,)))
    with pytest.raises(ConfigError, match=r"--data.arm leaves out column 1, which is not constant"):
        choose_action_spec([reader], rows, DataConfig(arm=(0, 2, 3, 4, 5)))


def test_constant_columns_stay_constant_under_an_override(rows):
    """Guards against: a constant column learned by regression, without a range to scale it by."""
    still = replace(rows, actions=np.where(np.arange(7) == 3, np.float32(0.25), rows.actions))
    spec = choose_action_spec([Stub()], still, DataConfig(gripper=(6,)))
    assert spec.constant == {3: 0.25}
    assert spec.arm_columns == (0, 1, 2, 4, 5)


@pytest.mark.parametrize(
    ("pair", "outcome"),
    [((-1.0, 1.0), (0.0, 1.0)), ((0.0, 1.0), (0.0, 1.0)), ((1.0, 0.0), (1.0, 0.0)), ((0.0, 0.08), None)],
)
def test_gripper_values_are_those_of_the_data(tmp_path, pair, outcome):
    """Guards against: a gripper of 0 and 1 trained as one of -1 and 1, or a declared pair that the data contradict."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path, action_spec=ActionSpec(arm=2, gripper=1, gripper_values=(pair,))) as writer:
        rows = np.random.default_rng(0).normal(size=(10, 3))
        rows[:, 2] = np.arange(10) < 5
        writer.write(Demo("demo_0", {"qpos": np.ones((10, 7))}, rows))
    with open_demos(path) as demos:
        found = load_rows([(demos, demos.names)], ("qpos",))
        if outcome is None:
            with pytest.raises(
                DemoFormatError, match=r"the gripper \(action 2\) holds 0 and 1; the action spec declares 0 and 0.08"
            ):
                choose_action_spec([demos], found, DataConfig())
        else:
            assert choose_action_spec([demos], found, DataConfig()).gripper_values == (outcome,)


def test_a_ramp_is_not_a_binary_gripper(tmp_path):
    """Guards against: a continuous gripper in metres, declared binary and rounded to open or closed."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path, action_spec=ActionSpec(arm=2, gripper=1)) as writer:
        writer.write(Demo("demo_0", {"qpos": np.ones((10, 7))}, np.linspace(-1, 1, 30).reshape(10, 3)))
    with open_demos(path) as demos:
        found = load_rows([(demos, demos.names)], ("qpos",))
        with pytest.raises(DemoFormatError, match="action 2 is declared a binary gripper and has 10 values"):
            choose_action_spec([demos], found, DataConfig())
    assert any("declared a binary gripper" in finding.text for finding in check_file(path).problems)


def test_one_filter_key_for_both_splits_is_split_in_turn(demo_file):
    """Guards against: "demo_4 is both in valid and in valid" where a small subset is tried first."""
    with open_demos(demo_file.path) as demos:
        train, valid = split_names(demos, DataConfig(train_filter="train", valid_filter="train"))
    assert sorted([*train, *valid]) == ["demo_0", "demo_1", "demo_2", "demo_3"]
    assert valid


def test_tokens_of_ones_own_process_are_enough_to_train_on(tmp_path, make_demo):
    """Guards against: `DemoWriter(..., tokens=...)` writing a file that training refuses for a missing attribute."""
    tokens = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float16)
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(replace(make_demo(0), tokens=tokens))
        writer.write(replace(make_demo(1), tokens=tokens[:, :2]))
    with open_demos(tmp_path / "a.hdf5") as demos:
        assert require_one_encoder([demos]) == {}
        rows = load_rows([(demos, ["demo_0"])], ("tokens",), placement="host")
        assert rows.large["tokens"].shape == (3, 4)
        with pytest.raises(DemoFormatError, match="demo_1: tokens has rows of float16"):
            load_rows([(demos, demos.names)], ("tokens",), placement="host")
    problems = check_file(tmp_path / "a.hdf5").problems
    assert "tokens has shape (2, 4) a step; in the demos before it is (3, 4)" in [problem.text for problem in problems]


def test_a_continuous_gripper_has_the_ends_that_the_demos_use(rows, caplog):
    """Guards against: metres or percent executed as -1 .. 1, and ends that the demos contradict."""
    actions = rows.actions.copy()
    actions[:, 2] = np.linspace(0, 100, len(actions))
    rows = replace(rows, actions=actions)
    caplog.set_level("INFO")
    spec = choose_action_spec([Stub(facts={"continuous_gripper": (2,)})], rows, DataConfig())
    assert spec.continuous_gripper_values == ((100.0, 0.0),)
    assert "action 2 holds 0 .. 100; the first end is taken to be 100" in caplog.text
    actions[:, 2] = np.linspace(0, 1.5, len(actions))
    spec = choose_action_spec([Stub(facts={"continuous_gripper": (2,)})], rows, DataConfig())
    assert spec.continuous_gripper_values == ((1.5, 0.0),)
    leader = ActionSpec(arm=6, gripper=1, continuous_gripper=[2], continuous_gripper_values=[(1.0, 0.0)])
    assert choose_action_spec([Stub(spec=leader)], rows, DataConfig()).continuous_gripper_values == ((1.0, 0.0),)
    actions[:, 2] = np.linspace(0, 100, len(actions))
    declared = ActionSpec(arm=6, gripper=1, continuous_gripper=[2], continuous_gripper_values=[(0.08, 0.0)])
    with pytest.raises(
        DemoFormatError, match=r"\(action 2\) holds 0 .. 100; the action spec declares its ends as 0.08 and 0"
    ):
        choose_action_spec([Stub(spec=declared)], rows, DataConfig())


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (0.0, 0.08, (0.08, 0.0)),
        (0.0, 1.0, (1.0, 0.0)),
        (-0.01, 0.09, (0.09, -0.01)),
        (-0.9, 0.95, (-1.0, 1.0)),
        (-1.0, 1.0, (-1.0, 1.0)),
    ],
)
def test_ends_within_minus_one_and_one_are_inferred_too(rows, caplog, low, high, ends):
    """Guards against: metres within -1 .. 1 taken as -1 .. 1, so that the gripper hardly moves."""
    actions = rows.actions.copy()
    actions[:, 2] = np.linspace(low, high, len(actions))
    caplog.set_level("INFO")
    given = [Stub(facts={"continuous_gripper": (2,)})]
    spec = choose_action_spec(given, replace(rows, actions=actions), DataConfig())
    np.testing.assert_allclose(spec.continuous_gripper_values, [ends], atol=1e-6)
    assert ("the first end is taken to be" in caplog.text) == (ends != (-1.0, 1.0))
