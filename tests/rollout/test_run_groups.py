"""Which runs are training seeds of one config."""

from robopolicy.rollout.training_seeds import config_values, group_runs


def test_runs_that_differ_in_their_seed_are_one_group():
    """Guards against: a mean over two different configs, and training seeds reported one by one."""
    configs = {
        "a": {"memory.kind": "lstm", "training.seed": 0},
        "b": {"memory.kind": "none", "training.seed": 0},
        "c": {"memory.kind": "lstm", "training.seed": 1},
    }
    groups = group_runs(configs)
    assert [group.runs for group in groups] == [("a", "c"), ("b",)]
    assert [group.name for group in groups] == ["memory.kind lstm", "memory.kind none"]


def test_a_single_group_is_named_by_its_runs():
    """Guards against: a group without a name."""
    (group,) = group_runs({"a": {"x": 1, "seed": 0}, "b": {"x": 1, "seed": 1}})
    assert group.name == "a, b"


def test_runs_without_a_config_are_not_thrown_together():
    """Guards against: two exported policies taken for training seeds of one config."""
    assert [group.runs for group in group_runs({"a": {}, "b": {}})] == [("a",), ("b",)]


def test_nested_fields_are_named_with_dots(tmp_path):
    """Guards against: a difference deep in a config that is not named."""
    (tmp_path / "config.yaml").write_text("memory: {kind: lstm, sizes: {hidden: 8}}\nseed: 3\n")
    assert config_values(tmp_path) == {"memory.kind": "lstm", "memory.sizes.hidden": 8, "seed": 3}
    assert config_values(tmp_path / "none") == {}
