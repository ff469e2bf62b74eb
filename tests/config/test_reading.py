"""Properties of configuration: one declaration, unknown keys refused, contradictions in the command line's words."""

import re
from pathlib import Path

import pytest

from robopolicy.config import ConfigError, ExperimentConfig, config_from_dict, config_to_dict, read_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    """A flag that a YAML value silently beats would waste a day of training."""
    path = write(tmp_path / "a.yaml", "head: {window: 16, chunk: 4}\n")
    config = read_config(path, ["--head.chunk", "5"])
    assert (config.head.window, config.head.chunk, config.head.layers) == (16, 5, 2)


def test_one_file_is_as_good_as_a_list():
    """`--data.files a.hdf5` must not be read as a list of characters, nor need brackets."""
    assert read_config(None, ["--data.files", "a.hdf5"]).data.files == ("a.hdf5",)
    assert read_config(None, ["--data.files", "a.hdf5", "b.hdf5", "--head.window", "3"]).data.files == (
        "a.hdf5",
        "b.hdf5",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head: {windw: 3}\n", "windw"),
        ("hed: {window: 3}\n", "hed"),
        ("head: {window: many}\n", "head.window"),
        ("head: {cell: transformer, history: carry}\n", "--head.history carry"),
        ("data: {segment: 3}\n", "--data.segment 3 is shorter"),
        ("data: {files: [a], file_weights: [1.0, 2.0]}\n", "--data.file_weights"),
    ],
)
def test_a_bad_config_is_refused_in_one_line_that_names_the_file(tmp_path, text, message):
    """A typo that nobody is told of trains something else than was meant."""
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert message in str(refused.value)
    assert "bad.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_config_file_is_named(tmp_path):
    """The default config must not stand in for a file that isn't there."""
    with pytest.raises(ConfigError, match="no such config file"):
        read_config(tmp_path / "none.yaml")


def test_a_config_survives_its_dictionary():
    """The resolved config saved with a run must be the one that ran."""
    config = read_config(None, ["--loss.terms", "{arm: 1.0, where: 0.5}", "--data.cameras", "front", "wrist"])
    assert config_from_dict(config_to_dict(config)) == config
    assert config_from_dict(config_to_dict(ExperimentConfig())) == ExperimentConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_read(path):
    """A shipped config with a renamed key is the first thing a new user meets."""
    assert isinstance(read_config(path), ExperimentConfig)


def test_null_for_a_list_is_null_and_not_a_name():
    """`--data.cameras null` asks for every camera; one called "null" is in no file."""
    assert read_config(overrides=["--data.cameras", "null"]).data.cameras is None
    assert read_config(overrides=["--data.cameras", "front"]).data.cameras == ("front",)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("head.layers", "0", "1 or more"),
        ("head.dropout", "1.5", "0 or more, below 1"),
        ("head.head_widths", "[64,-3]", "1 or more"),
        ("encoder.width", "0", "1 or more"),
        ("optimizer.lr", "-1", "above 0"),
        ("optimizer.accumulate", "0", "1 or more"),
        ("training.checkpoint_every", "0", "1 or more"),
        ("training.max_minutes", ".nan", "above 0"),
        ("training.seed", "-1", "0 .. 4294967295"),
        ("loss.terms", "{arm: -1.0}", "0 or more"),
        ("data.train_demos", "0", "1 or more"),
        ("execution.replan_every", "9", "the --head.chunk 8"),
    ],
)
def test_a_number_that_means_nothing_is_refused_before_a_run_folder_is_made(option, value, expected):
    """They trained upside down, not at all, or ended in a ZeroDivisionError with a run folder half made."""
    with pytest.raises(ConfigError, match=re.escape(f"--{option} ")) as refused:
        read_config(None, [f"--{option}", value])
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("head.window", "many", "--head.window is many; expected int"),
        ("head.cell", "rnn", "--head.cell is rnn; expected one of 'lstm', 'gru', 'transformer', 'none'"),
        ("training.max_minutes", "long", "--training.max_minutes is long; expected float or null"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_plain_words(option, value, expected):
    """`Parser key "head.window": Expected a <class 'int'>` is the parser's language, not the user's."""
    with pytest.raises(ConfigError, match=re.escape(expected)):
        read_config(None, [f"--{option}", value])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"task: [lift\n", "not YAML"),
        (b"task: lif\xff\n", "not YAML"),
    ],
)
def test_a_config_that_is_no_yaml_mapping_is_refused_by_name(tmp_path, content, message):
    """`'utf-8' codec can't decode byte 0xff` does not say which of the files on the command line is meant."""
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"odd\.yaml: .*{message}"):
        read_config(tmp_path / "odd.yaml")
    with pytest.raises(ConfigError, match="a folder"):
        read_config(tmp_path)
