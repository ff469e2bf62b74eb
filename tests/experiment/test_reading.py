"""Reading a config: one declaration per option, unknown names refused, errors in the words of the command line."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robopolicy import components
from robopolicy.components import ConfigError, kinds
from robopolicy.experiment import ExperimentConfig, config_from_dict, config_to_dict, read_config
from robopolicy.experiment.config import COMPONENT_SECTIONS
from robopolicy.model.memories.gru import GRUOptions
from robopolicy.training.augmentations.shift import ShiftOptions
from robopolicy.training.losses.memory_keys import MemoryKeysOptions

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PLUGIN = """
from dataclasses import dataclass
from robopolicy.components import register

@dataclass(frozen=True)
class EchoOptions:
    window: int = 4
    decay: float = 0.5

@register("memory", "echo", EchoOptions)
def make_echo(options, width): ...
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that registers the memory `echo`."""
    write(tmp_path / "plugin_echo.py", PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "plugin_echo"
    sys.modules.pop("plugin_echo", None)
    if found := components._registered.pop(("memory", "echo"), None):
        components._by_options.pop(found.options)


def test_overrides_win_over_the_file_and_it_over_defaults(tmp_path):
    """Guards against: a flag that a YAML value silently overrides."""
    path = write(tmp_path / "a.yaml", "memory: {window: 16}\naction_head: {chunk: 4}\n")
    config = read_config(path, ["--action_head.chunk", "5"])
    assert (config.memory.window, config.action_head.chunk, config.memory.layers) == (16, 5, 2)


def test_one_file_is_as_good_as_a_list():
    """Guards against: `--data.files a.hdf5` read as a list of characters, or refused without brackets."""
    assert read_config(None, ["--data.files", "a.hdf5"]).data.files == ("a.hdf5",)
    assert read_config(None, ["--data.files=a.hdf5"]).data.files == ("a.hdf5",)
    assert read_config(None, ["--data.files", "a.hdf5", "b.hdf5", "--memory.window", "3"]).data.files == (
        "a.hdf5",
        "b.hdf5",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: {windw: 3}\n", "unknown option --memory.windw; the options of memory 'lstm' are: window, history, "),
        ("mem: {window: 3}\n", "unknown option --mem; the sections are: task, plugins, data, "),
        ("memory: {window: many}\n", "--memory.window must be an integer, got many"),
        ("memory: lstm\n", "memory must be a mapping of options, got 'lstm'"),
        ("memory: {kind: transformer, history: carry}\n", "unknown option --memory.history"),
        ("memory: {kind: none, history: carry}\n", "unknown option --memory.history"),
        ("data: {segment: 3}\n", "--data.segment must be >= --memory.window, got 3 < 8"),
        ("data: {files: [a], file_weights: [1.0, 2.0]}\n", "--data.file_weights has 2 entries for 1 --data.files"),
        ("losses: {arm: much}\n", "--losses.arm must be a weight >= 0"),
        ("losses: {forward: {decay: 1.0}}\n", "--losses.forward must be a weight >= 0, or {weight: w, ...}"),
    ],
)
def test_a_bad_config_is_refused_in_one_line_with_its_file(tmp_path, text, message):
    """Guards against: a typo that is ignored, so that something else is trained than was meant."""
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert message in str(refused.value)
    assert "bad.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_config_file_is_named(tmp_path):
    """Guards against: the default config standing in for a file that isn't there."""
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_config(tmp_path / "none.yaml")


def test_a_config_survives_its_dictionary():
    """Guards against: a resolved config, saved with a run, that is not the one that ran."""
    given = [
        "--losses.memory_keys.weight",
        "0.5",
        "--losses.memory_keys.keys",
        "goal",
        "--augmentation.shift.pixels",
        "3",
    ]
    config = read_config(None, [*given, "--data.cameras", "front", "wrist", "--memory.kind", "gru"])
    assert config_from_dict(config_to_dict(config)) == config
    assert config_from_dict(config_to_dict(ExperimentConfig())) == ExperimentConfig()


@pytest.mark.parametrize("section", COMPONENT_SECTIONS)
def test_every_kind_survives_its_dictionary(section):
    """Guards against: a kind whose options can't be written to a run folder and read again."""
    for kind in kinds(section):
        config = ExperimentConfig().change({f"{section}.kind": kind})
        values = config_to_dict(config)
        assert values[section]["kind"] == kind
        assert config_from_dict(values) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_read(path):
    """Guards against: a shipped config with the former name of an option."""
    assert isinstance(read_config(path), ExperimentConfig)


def test_null_for_a_list_is_null_and_not_a_name():
    """Guards against: `--data.cameras null`, which means every camera, read as one camera called "null"."""
    assert read_config(overrides=["--data.cameras", "null"]).data.cameras is None
    assert read_config(overrides=["--data.cameras", "front"]).data.cameras == ("front",)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("memory.layers", "0", ">= 1"),
        ("memory.dropout", "1.5", ">= 0 and < 1"),
        ("pooling.latent", "0", ">= 1"),
        ("action_head.widths", "[64,-3]", ">= 1"),
        ("action_head.arm_weights", "[1.0,-1.0]", ">= 0"),
        ("action_head.huber_delta", "0", "> 0"),
        ("encoder.width", "0", ">= 1"),
        ("encoder.hidden", "0", ">= 1"),
        ("optimizer.lr", "-1", "> 0"),
        ("optimizer.accumulate", "0", ">= 1"),
        ("training.checkpoint_every", "0", ">= 1"),
        ("training.max_minutes", ".nan", "> 0"),
        ("training.seed", "-1", "0 .. 4294967295"),
        ("losses.arm", "-1.0", ">= 0"),
        ("data.train_demos", "0", ">= 1"),
        ("execution.replan_every", "9", "<= --action_head.chunk, got 9 > 8"),
    ],
)
def test_a_number_out_of_range_is_refused_when_it_is_read(option, value, expected):
    """Guards against: training upside down or not at all, or a ZeroDivisionError with a run folder half written."""
    with pytest.raises(ConfigError, match=re.escape(f"--{option} must be ")) as refused:
        read_config(None, [f"--{option}", value])
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("memory.window", "many", "--memory.window must be an integer, got many"),
        ("memory.kind", "rnn", "memory 'rnn' is unknown; choose one of "),
        ("memory.history", "all", "--memory.history must be one of window, carry, got all"),
        ("training.max_minutes", "long", "--training.max_minutes must be a number or null, got long"),
        ("losses.arm", "{", "--losses.arm"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_words(option, value, expected):
    """Guards against: `Parser key "memory.window": Expected a <class 'int'>`, the parser's language and not the user's."""
    with pytest.raises(ConfigError, match=re.escape(expected)) as refused:
        read_config(None, [f"--{option}", value])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"task: [lift\n", "not YAML"),
        (b"task: lif\xff\n", "not YAML"),
    ],
)
def test_a_config_that_is_not_a_yaml_mapping_is_named(tmp_path, content, message):
    """Guards against: `'utf-8' codec can't decode byte 0xff`, which doesn't say which of the files is meant."""
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"odd\.yaml: .*{message}"):
        read_config(tmp_path / "odd.yaml")
    with pytest.raises(ConfigError, match="a folder"):
        read_config(tmp_path)


# -- kinds ---------------------------------------------------------------------------------------------------------------


def test_an_option_of_another_kind_lists_the_chosen_kinds_own():
    """Guards against: an option that the chosen kind ignores, such as the attention heads of an LSTM."""
    message = (
        "unknown option --memory.heads; the options of memory 'lstm' are: window, history, layers, hidden, dropout"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(None, ["--memory.heads", "4"])
    assert read_config(None, ["--memory.kind", "transformer", "--memory.heads", "4"]).memory.heads == 4


@pytest.mark.parametrize("kind_first", [True, False])
def test_a_kind_and_its_options_come_in_any_order(kind_first):
    """Guards against: options before `--memory.kind` being refused, or dropped as those of the kind before."""
    pairs = [["--memory.kind", "gru"], ["--memory.hidden", "512"]]
    first, second = pairs if kind_first else pairs[::-1]
    config = read_config(None, [*first, *second])
    assert config_to_dict(config)["memory"] == {
        "kind": "gru",
        "window": 8,
        "history": "window",
        "layers": 2,
        "hidden": 512,
        "dropout": 0.0,
    }


def test_another_kind_drops_the_options_of_the_kind_before(tmp_path):
    """Guards against: `--memory.kind none` refused because the file sizes an LSTM; a GRU with a transformer's width."""
    path = write(tmp_path / "a.yaml", "memory: {history: carry, layers: 3, hidden: 64}\n")
    assert config_to_dict(read_config(path, ["--memory.kind", "none"]))["memory"] == {"kind": "none", "hidden": 256}
    transformer = ExperimentConfig().change({"memory.kind": "transformer", "memory.heads": 2, "memory.hidden": 10})
    assert transformer.change({"memory.kind": "gru"}).memory == read_config(None, ["--memory.kind", "gru"]).memory


def test_the_same_kind_keeps_its_options(tmp_path):
    """Guards against: `--memory.kind lstm` resetting the sizes of the LSTM that the file describes."""
    path = write(tmp_path / "a.yaml", "memory: {layers: 3}\n")
    assert read_config(path, ["--memory.kind", "lstm"]).memory.layers == 3


def test_the_default_text_is_the_encoders():
    """Guards against: a backbone that reads prompts, given word numbers of our own vocabulary."""
    assert config_to_dict(read_config())["text"]["kind"] == "vocabulary"
    backbone = ["--encoder.kind", "transformers", "--encoder.model", "m"]
    assert config_to_dict(read_config(None, backbone))["text"]["kind"] == "prompt"
    assert config_to_dict(read_config(None, [*backbone, "--text.kind", "none"]))["text"]["kind"] == "none"


@pytest.mark.parametrize(("option", "value"), [("file_weights", "[2.0]"), ("first_step_share", "0.5")])
def test_a_carried_memory_refuses_how_segments_are_drawn(option, value):
    """Guards against: a sampling option that is accepted and has no effect, since whole demos are read in order."""
    given = ["--data.files", "a.hdf5", f"--data.{option}", value]
    assert getattr(read_config(None, given).data, option)
    with pytest.raises(ConfigError, match=rf"--data\.{option} can't be used with --memory\.history carry"):
        read_config(None, [*given, "--memory.history", "carry"])


def test_a_carried_memory_may_have_a_short_segment():
    """Guards against: truncated BPTT in pieces shorter than the window refused; no windows are cut from them."""
    config = read_config(None, ["--memory.history", "carry", "--data.segment", "3"])
    assert (config.data.segment, config.memory.window) == (3, 8)


# -- losses and augmentations ----------------------------------------------------------------------------------------------


def test_a_loss_from_the_command_line_joins_the_others(tmp_path):
    """Guards against: `--losses.forward 0.1` that replaces the losses of the arm and the gripper."""
    assert read_config(None, ["--losses.forward", "0.1"]).losses == {"arm": 1.0, "gripper": 0.01, "forward": 0.1}
    path = write(tmp_path / "a.yaml", "losses: {arm: 2.0}\n")
    assert read_config(path, ["--losses.forward", "0.1"]).losses == {"arm": 2.0, "forward": 0.1}


def test_an_option_of_a_loss_keeps_its_weight(tmp_path):
    """Guards against: naming a loss's keys on the command line and losing the weight that the file gives it."""
    path = write(tmp_path / "a.yaml", "losses: {arm: 1.0, memory_keys: 0.3}\n")
    config = read_config(path, ["--losses.memory_keys.keys", "[target_pos]"])
    assert config.losses == {"arm": 1.0, "memory_keys": {"weight": 0.3, "keys": ["target_pos"]}}


def test_a_weight_may_be_in_scientific_notation(tmp_path):
    """Guards against: YAML 1.1, where 1e-3 without a point is text, refusing what `--optimizer.lr` accepts."""
    assert read_config(None, ["--losses.arm", "1e-3"]).losses["arm"] == 0.001
    assert read_config(write(tmp_path / "a.yaml", "losses: {arm: 1e-3}\n")).losses["arm"] == 0.001


def test_a_whole_section_may_be_given_as_a_mapping():
    """Guards against: `--losses "{arm: 1.0}"`, as `--help` shows it, refused as text."""
    assert read_config(None, ["--losses", "{arm: 1.0, forward: 0.5}"]).losses == {"arm": 1.0, "forward": 0.5}
    assert read_config(None, ["--memory", "{kind: gru, hidden: 9}"]).memory.hidden == 9


# -- plug-ins ------------------------------------------------------------------------------------------------------------


def test_options_of_augmentations_and_losses_may_be_objects():
    """Guards against: a program that has to write options as dictionaries, where no editor completes or checks them."""
    config = ExperimentConfig(
        memory=GRUOptions(window=3),
        augmentation={"shift": ShiftOptions(pixels=2)},
        losses={"arm": 1.0, "memory_keys": (0.1, MemoryKeysOptions(keys=("target_pos",)))},
    )
    assert config == config_from_dict(config_to_dict(config))
    assert config.augmentation == {"shift": {"pixels": 2}}
    assert config == ExperimentConfig().change(
        {
            "memory": GRUOptions(window=3),
            "augmentation.shift": ShiftOptions(pixels=2),
            "losses": {"arm": 1.0, "memory_keys": {"weight": 0.1, "keys": ["target_pos"]}},
        }
    )
    with pytest.raises(ConfigError, match="augmentation 'crop' got options of augmentation 'shift'"):
        ExperimentConfig(augmentation={"crop": ShiftOptions()})


def test_a_plug_in_named_in_a_config_adds_its_kinds(tmp_path, plugin):
    """Guards against: a plug-in imported after its kind is looked up, or whose options aren't checked as ours are."""
    path = write(tmp_path / "a.yaml", f"plugins: [{plugin}]\nmemory: {{kind: echo, decay: 0.25}}\n")
    assert (read_config(path).memory.window, read_config(path).memory.decay) == (4, 0.25)
    with pytest.raises(ConfigError, match=r"--memory\.decay must be a number, got slow"):
        read_config(path, ["--memory.decay", "slow"])
    given = ["--plugins", plugin, "--memory.kind", "echo", "--memory.layers", "2"]
    with pytest.raises(ConfigError, match="the options of memory 'echo' are: window, decay"):
        read_config(None, given)


def test_a_dictionary_imports_no_plug_in_unless_asked(plugin):
    """Guards against: running a stranger's module because a run folder's config names it."""
    values = {"plugins": [plugin], "memory": {"kind": "echo"}}
    with pytest.raises(ConfigError, match="memory 'echo' is unknown"):
        config_from_dict(values)
    assert plugin not in sys.modules
    assert config_from_dict(values, import_plugins=True).memory.decay == 0.5
