"""The example plug-in: each component in one file of another package, used without an edit of ours."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from robopolicy.cli import main
from robopolicy.components import ConfigError, build, component, load_plugins
from robopolicy.control.robots.base import RobotContext
from robopolicy.demos.formats import convert, demo_format
from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.testing import action_head, encoder, loss, memory, robot, task
from robopolicy.testing import demo_format as format_kit
from robopolicy.training.augmentations import AugmentationInputs
from robopolicy.types import ArraySpec, Batch, DemoFormatError
from tests.making import forget_plugins, make

FOLDER = Path(__file__).parents[2] / "examples" / "plugin"
MODELS = ["gated_linear", "gaussian", "strided"]
MODULES = [*MODELS, "inverse_dynamics", "gray", "hover", "npz_episodes", "lagging"]
ENTRIES = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["entry-points"]["robopolicy.components"]
KINDS = [tuple(name.split(".")) for name in ENTRIES]
NAMES = [f"robopolicy_example.{name}" for name in MODULES]
OPTIONS = [
    *("--encoder.kind", "strided", "--encoder.width", "8", "--encoder.channels", "[4, 8]"),
    *("--memory.kind", "gated_linear", "--memory.window", "3", "--memory.hidden", "8", "--memory.heads", "2"),
    *("--action_head.kind", "gaussian", "--action_head.chunk", "2", "--execution.replan_every", "2"),
    *("--losses.inverse_dynamics.weight", "0.1", "--losses.inverse_dynamics.hidden", "8"),
    *("--augmentation.gray.probability", "0.5"),
]
"""Small components of the plug-in."""


@pytest.fixture
def plugin(monkeypatch):
    """The package on the path, as if installed without its entry points; afterwards the registry is as it was."""
    monkeypatch.syspath_prepend(FOLDER)
    yield
    forget_plugins()
    for name in [name for name in sys.modules if name.partition(".")[0] == "robopolicy_example"]:
        del sys.modules[name]


@pytest.fixture
def loaded(plugin):
    """All of its modules, loaded."""
    load_plugins(NAMES)


def fast(module):
    """The checks of a kit that trace no graph; those take seconds each."""
    for check in module.CHECKS:
        marks = [pytest.mark.slow] if check.__name__.startswith("an_exported") else []
        yield pytest.param(check, marks=marks, id=check.__name__)


@pytest.mark.parametrize("history", ["window", "carry"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("check", [*fast(memory)])
def test_the_example_memory_keeps_the_contract(loaded, history, layers, check):
    """Guards against: a matrix-valued state that fits the contract on paper only."""
    torch.manual_seed(0)
    made = make("memory", "gated_linear", 5, window=4, history=history, layers=layers, hidden=8, heads=2)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    check(made, 5)


@pytest.mark.parametrize("check", [*fast(action_head)])
def test_the_example_head_keeps_the_contract(loaded, check):
    """Guards against: a sampling head that only a subclass of ours could be."""
    torch.manual_seed(0)
    check(lambda action: make("action_head", "gaussian", 16, action, chunk=3), 16)


@pytest.mark.parametrize("check", [*fast(encoder)])
def test_the_example_encoder_keeps_the_contract(loaded, check):
    """Guards against: an encoder of images that ignores one, or the instruction."""
    cameras = {"front": ArraySpec((24, 32, 3), "uint8"), "wrist": ArraySpec((17, 18, 1), "uint8")}
    torch.manual_seed(0)
    text = make("text", "vocabulary", TextInputs(Vocabulary.of(encoder.INSTRUCTIONS), 8))
    case = encoder.EncoderCase(
        lambda inputs: make("encoder", "strided", inputs, width=8),
        {"ee_pose": ArraySpec((7,)), **cameras},
        lambda instructions: text(text.prepare(instructions)),
    )
    check(case)


@pytest.mark.parametrize("check", loss.CHECKS)
def test_the_example_loss_keeps_the_contract(loaded, check):
    """Guards against: a loss that padding changes."""
    check(lambda context: build(component("loss", "inverse_dynamics").options(hidden=8), context))


@pytest.mark.parametrize("check", task.CHECKS)
def test_the_example_task_keeps_the_contract(loaded, check):
    """Guards against: a task that its own expert can't solve."""
    check("hover", height_m=0.12)


def test_the_example_format_keeps_the_contract(loaded, tiny_demos, tmp_path):
    """Guards against: a format of a plug-in that is found and read, but not written, or the other way round."""
    found = demo_format("npz_episodes")
    for check in format_kit.WRITER_CHECKS:
        check(found, tiny_demos)
    convert(tiny_demos, tmp_path / "npz", "npz_episodes")
    for check in format_kit.CHECKS:
        check(found, tmp_path / "npz")
    (tmp_path / "npz" / "episode_000000.npz").write_bytes(b"not an archive")
    with found.open(tmp_path / "npz") as reader, pytest.raises(DemoFormatError, match=r"episode_000000\.npz: not an"):
        reader.read("demo_0")


@pytest.mark.parametrize("check", robot.CHECKS)
def test_the_example_robot_keeps_the_contract(loaded, check):
    """Guards against: a robot that only an edit of the command line makes known."""
    check(build(component("robot", "lagging").options(), RobotContext()))


def test_its_entry_points_name_the_modules_that_register_them(loaded):
    """Guards against: an installed plug-in of which a kind is listed and can't be loaded."""
    for (family, kind), module in zip(KINDS, ENTRIES.values(), strict=True):
        assert component(family, kind).make.__module__ == module
    assert sorted(ENTRIES.values()) == sorted(NAMES)


def trained(demos, folder, *more):
    """Four steps with every model component of the plug-in."""
    words = ["train", "--data.files", str(demos), "--data.cameras", "front", "--run-dir", str(folder)]
    short = ["--max-steps", "4", "--training.valid_every", "2", "--data.batch_size", "4"]
    return main([*words, *short, *OPTIONS, *more])


def test_it_trains_acts_and_names_its_origin(plugin, tiny_demos, tmp_path, capsys):
    """Guards against: a component from outside that the command line, the config or the run folder refuses."""
    assert trained(tiny_demos, tmp_path / "run", "--plugins", *NAMES) == 0
    found = json.loads((tmp_path / "run" / "policy.json").read_text())["components"]
    assert found["memory"] == {"kind": "gated_linear", "origin": "robopolicy_example.gated_linear"}
    assert found["action_head"] == {"kind": "gaussian", "origin": "robopolicy_example.gaussian"}
    assert found["pooling"]["origin"] == "robopolicy"
    policy = load_policy(tmp_path / "run", plugins=NAMES)
    frame = {"ee_pose": torch.zeros(7), "gripper": torch.zeros(1), "cube_red": torch.zeros(3)}
    frame["front"] = torch.zeros(16, 16, 3, dtype=torch.uint8)
    state = policy.initial_state(())
    actions, state = policy.act({**frame, "instruction": "lift the red cube"}, state)
    assert actions.shape == (2, 7)
    assert state.tensors[0].shape == (1, 3, 2, 4, 4)


def test_without_the_plug_in_one_line_names_it(plugin, tiny_demos, tmp_path, capsys):
    """Guards against: a run folder that imports what it names, or that fails with a traceback."""
    assert trained(tiny_demos, tmp_path / "run", "--plugins", *NAMES) == 0
    forget_plugins()
    with pytest.raises(
        ConfigError, match=r"'strided' is unknown; .*components of .*robopolicy_example.gaussian, .*install it"
    ):
        load_policy(tmp_path / "run")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--task", "reach", "--episodes", "1"]) == 2
    error = capsys.readouterr().err
    assert "robopolicy_example.gated_linear" in error
    assert error.count("\n") == 1


def test_its_options_are_shown_and_checked(plugin, capsys):
    """Guards against: help that covers built-in kinds only, and one plug-in's name read as a list of letters."""
    with pytest.raises(SystemExit):
        main(["train", "--memory.kind", "gated_linear", "--plugins", "robopolicy_example.gated_linear", "--help"])
    shown = capsys.readouterr().out
    assert "--memory.heads" in shown
    assert "State matrices of each layer" in shown
    words = ["train", "--plugins", "robopolicy_example.gated_linear", "--memory.kind", "gated_linear", "--run-dir", "x"]
    assert main([*words, "--memory.dropout", "0.1"]) == 2
    assert (
        "unknown option --memory.dropout; the options of memory 'gated_linear' are: window" in capsys.readouterr().err
    )
    assert main([*words, "--memory.heads", "3"]) == 2
    assert "--memory.hidden 128 must be a multiple of --memory.heads 3" in capsys.readouterr().err


def test_a_config_takes_its_options_as_objects(loaded):
    """Guards against: components that Python code can choose by name only."""
    options = component("memory", "gated_linear").options(window=5, hidden=16)
    assert ExperimentConfig(memory=options).memory is options
    changed = ExperimentConfig().change({"memory": options, "action_head.kind": "gaussian", "training.max_steps": 3})
    assert changed.memory == options
    assert (changed.action_head.chunk, changed.training.max_steps) == (8, 3)
    assert changed.change({"memory.window": 6}).memory.hidden == 16


def test_kinds_that_it_builds_on_stay_built_in():
    """Guards against: a run folder that says a plug-in is needed for `reach`, which the plug-in's task derives from."""
    code = (
        "from robopolicy.components import component, load_plugins; load_plugins(['robopolicy_example.hover']); "
        "print(*(component('task', kind).origin for kind in ('reach', 'hover')))"
    )
    assert python(code) == "robopolicy robopolicy_example.hover\n"


def test_train_from_python_prints_its_progress(tiny_demos, tmp_path):
    """Guards against: a script or notebook that trains for minutes in silence."""
    code = f"""
from robopolicy import ExperimentConfig, train
from robopolicy.components import component, load_plugins
load_plugins(["robopolicy_example.gated_linear"])
memory = component("memory", "gated_linear").options(window=3, hidden=8, heads=2)
changes = {{"data.files": [{str(tiny_demos)!r}], "training.max_steps": 4, "training.valid_every": 2, "data.batch_size": 4}}
train(ExperimentConfig(memory=memory).change(changes), {str(tmp_path / "run")!r})
"""
    shown = python(code)
    assert "step      2 of 4" in shown
    assert "trained   4 steps" in shown


def python(code):
    """What a fresh interpreter prints, with the package on its path."""
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_task_is_collected_and_evaluated(plugin, tmp_path, capsys):
    """Guards against: a task that the simulator's verbs know by a list."""
    out = tmp_path / "hover.hdf5"
    words = ["--task", "hover", "--episodes", "4", "--num-envs", "4", "--plugins", "robopolicy_example.hover"]
    assert main(["collect", "--out", str(out), *words]) == 0
    assert "4 demos" in capsys.readouterr().out
    run = ["--run-dir", str(tmp_path / "run"), "--max-steps", "2", "--memory.hidden", "8", "--training.select", "last"]
    assert main(["train", "--data.files", str(out), *run]) == 0
    assert main(["eval", str(tmp_path / "run"), *words[:2], "--episodes", "2", *words[6:]]) == 0


def test_the_example_loss_and_augmentation_do_what_they_say(loaded):
    """Guards against: padding that counts, and segments of which one camera or frame keeps its colors."""
    inputs = AugmentationInputs(cameras=("front", "wrist"))
    gray = build(component("augmentation", "gray").options(probability=0.5), inputs)
    images = torch.randint(0, 256, (16, 3, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    obs = gray(make_batch({"front": images, "wrist": images.flip(-2)})).obs
    colored = [(image.float().std(dim=-1) > 0).flatten(1).any(dim=1) for image in obs.values()]
    assert torch.equal(*colored)
    assert 0 < colored[0].sum() < 16
    assert torch.equal(obs["front"][colored[0]], images[colored[0]])


def make_batch(obs):
    count, steps = next(iter(obs.values())).shape[:2]
    valid = torch.ones(count, steps, dtype=torch.bool)
    return Batch(
        obs=obs,
        target=torch.zeros(count, steps, 2, 7),
        action_valid=valid[..., None].expand(-1, -1, 2),
        frame_valid=valid,
        instruction_id=torch.zeros(count, dtype=torch.int64),
        instructions=("lift",),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_is_installed_and_used_with_no_edit_of_ours(tmp_path):
    """Guards against: a plug-in that works only where its modules are named, or from our own tree."""
    pytest.importorskip("onnxruntime", reason="the extra export isn't installed")
    environment, source = tmp_path / "env", tmp_path / "source"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    ours = [str(FOLDER.parents[1]), *(path for path in sys.path if path.endswith("site-packages"))]
    (packages / "ours.pth").write_text("\n".join(ours))
    interpreter = environment / "bin" / "python"
    install = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]

    def run(*words):
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [interpreter, *map(str, words)],
            cwd=tmp_path,
            env={**clean, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}"
        return done.stdout

    def robopolicy(*words):
        return run("-c", "import sys; from robopolicy.cli import main; sys.exit(main())", *words)

    run(*install, source)
    shutil.rmtree(source)
    assert robopolicy("components", "memory").count("gated_linear   [robopolicy-example 0.1.0]") == 1
    for family, kind in KINDS:
        assert f"{kind}   [robopolicy-example 0.1.0]" in robopolicy("components", family)
    robopolicy("collect", "--task", "hover", "--episodes", "8", "--cameras", "front", "--out", "hover.hdf5")
    robopolicy("convert", "hover.hdf5", "npz", "--format", "npz_episodes")
    assert "8 demos" in robopolicy("check", "npz")
    words = ["--data.files", "hover.hdf5", "--data.cameras", "front", "--run-dir", "run", "--max-steps", "6"]
    robopolicy("train", *words, "--task", "hover", *OPTIONS)
    found = json.loads((tmp_path / "run" / "policy.json").read_text())["components"]
    assert found["memory"] == {"kind": "gated_linear", "origin": "robopolicy-example 0.1.0"}
    assert "success" in robopolicy("eval", "run", "--episodes", "2")
    robopolicy("export", "run", "--format", "onnx", "--out", "exported")
    assert "success" in robopolicy("eval", "exported", "--task", "hover", "--episodes", "2")
    robopolicy("run", "run", "--robot", "sim", "--task", "hover", "--seconds", "1")
    assert "replayed" in robopolicy("run", "--replay", "hover.hdf5", "--robot", "lagging")
