"""The base installation works without the extras, and a verb that needs one names it."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from robopolicy import cli

ROOT = Path(__file__).parents[1]
SAMPLE = str(ROOT / "data" / "sample.hdf5")
BLOCKED = sorted({package for packages in cli.EXTRAS.values() for package in packages} - {"fsspec"})
"""fsspec comes with torch."""
PROGRAM = """
import contextlib, io, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED, lines = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.meta_path.insert(0, Blocker())
from robopolicy.cli import main
results = []
for words in lines:
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            code = main(words)
        except SystemExit as done:
            code = done.code
    results.append([code, error.getvalue()])
print(json.dumps(results))
"""
"""Runs command lines in a process in which the packages of every extra are missing."""


def run_without_extras(lines: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(BLOCKED), json.dumps(lines)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    return [tuple(result) for result in json.loads(finished.stdout.splitlines()[-1])]


def test_every_verb_shows_its_help_without_extras(tmp_path):
    """Guards against: a top-level import that ends `run --help` in a traceback in the base installation."""
    verbs = [verb for verb in cli.VERBS if verb not in ("collect", "dagger", "improve")]  # these run our simulator
    results = run_without_extras([[verb, "--help"] for verb in verbs], tmp_path)
    assert {verb: result for verb, result in zip(verbs, results, strict=True) if result[0] != 0} == {}


def test_a_verb_names_the_extra_that_it_lacks(tmp_path):
    """Guards against: "No module named 'pyarrow'", from which a user can't tell what to install."""
    lines = {
        "sim": ["collect", "--task", "lift", "--out", "a.hdf5"],
        "serve": ["serve", "runs/lift"],
        "formats": ["convert", SAMPLE, "a", "--format", "lerobot"],
        "robot": ["run", "--replay", SAMPLE, "--robot", "ws://127.0.0.1:1"],
        "export": ["run", str(ROOT / "tests" / "control" / "tiny_export"), "--robot", "sim", "--task", "lift"],
    }
    for extra, (code, error) in zip(lines, run_without_extras([*lines.values()], tmp_path), strict=True):
        assert code == 2, (extra, error)
        assert f"pip install 'robopolicy[{extra}]'" in error.splitlines()[-1], extra
        assert "Traceback" not in error


def test_a_report_needs_no_package_of_the_simulator(tmp_path):
    """Guards against: a page of results that can't be made on a machine without MuJoCo."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"provenance": {}, "train": [{"step": 1, "loss": 0.5}]}))
    assert run_without_extras([["report", "run", "--out", "a.html"]], tmp_path) == [(0, "")]
    assert "<html" in (tmp_path / "a.html").read_text()


def test_the_simulator_alone_is_missed_by_run_robot_sim(tmp_path):
    """Guards against: `run --robot sim` without MuJoCo ending in a traceback."""
    ((code, error),) = run_without_extras([["run", "--replay", SAMPLE, "--robot", "sim", "--task", "lift"]], tmp_path)
    assert code == 2
    assert "pip install 'robopolicy[" in error.splitlines()[-1]


def test_every_extra_of_the_messages_is_declared():
    """Guards against: a message that names an extra which pyproject.toml does not have."""
    import re
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(cli.EXTRAS)
    for path in (ROOT / "robopolicy").rglob("*.py"):
        named |= {name for name in re.findall(r"robopolicy\[(\w+)\]", path.read_text()) if name != "extra"}
    assert named <= set(declared)


def test_constraints_pin_every_installed_dependency():
    """Guards against: a dependency, of an extra too, whose version changes under `make env` because nothing pins it."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    waiting, seen, installed = [(Requirement(line), "") for line in wanted], set(), set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        with suppress(PackageNotFoundError):
            found = distribution(name)
            installed.add(name)
            for inner in {"", *requirement.extras}:
                if (name, inner) not in seen:
                    seen.add((name, inner))
                    waiting += [(Requirement(line), inner) for line in found.requires or ()]
    assert len(installed) > 100, "those of the extras are followed"
    assert installed - pinned - {"setuptools", "pip", "robopolicy"} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout; it and the source distribution pass `twine check`."""
    folder = tmp_path_factory.mktemp("dist")
    venv.create(folder / "tools", with_pip=True)
    python = folder / "tools" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "build", "twine"], check=True)
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "site"))
    subprocess.run([python, "-m", "build", "-o", folder / "dist", folder / "source"], check=True, capture_output=True)
    made = [*(folder / "dist").iterdir()]
    subprocess.run([python, "-m", "twine", "check", "--strict", *made], check=True)
    assert len(made) == 2
    return next((folder / "dist").glob("robopolicy-*.whl"))


def with_torch(version: str, folder: Path) -> Path:
    """An interpreter of an environment that has torch and nothing of ours; a new environment for the version that runs.

    For other versions `ROBOPOLICY_PYTHONS` names interpreters, separated by colons; the test installs into their
    environments, and removes robopolicy and its extras again.
    """
    for given in filter(None, os.environ.get("ROBOPOLICY_PYTHONS", "").split(":")):
        if subprocess.run([given, "-V"], capture_output=True, text=True).stdout.startswith(f"Python {version}."):
            return Path(given)
    if version != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"ROBOPOLICY_PYTHONS names no Python {version} with torch")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    (torch_pin,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    subprocess.run([python, "-m", "pip", "install", "-q", torch_pin], check=True)
    return python


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""
"""Makes the modules `names` impossible to import."""
NOT_THERE = {"torch", "jaxtyping", "einops", "yaml", "rich", "jsonargparse", "h5py", "lightning", "msgpack", "PIL"}
SESSION = """
import json
import sys
from robopolicy.control import runtime
from robopolicy.control.execution import execution_from
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import SteppedInference
from robopolicy.control.loop import ControlLoop
from robopolicy.control.profile import read_profile
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.stream import PolicyStream

class Clock:
    t_s = 100.0
    def now(self):
        return self.t_s
    def sleep_until(self, t_s):
        self.t_s = max(t_s, self.t_s)

class Recorder:
    actions = []
    def record(self, tick):
        self.actions.append(tick.action.tolist())

policy = runtime.load(sys.argv[1], threads=1)
clock, spec = Clock(), policy.spec
robot = FakeRobot(read_profile("panda"), spec.control_dt, clock=clock)
robot.instruction = "lift the red cube"
inference, sent = SteppedInference(robot, PolicyStream(policy)), []
for kind in ("receding", "ensemble", "freeze"):
    execution = execution_from({"kind": kind, "replan_every": 2})
    executor = ChunkExecutor(spec.chunk, spec.control_dt, execution, action_spec=spec.action)
    loop = ControlLoop(robot, inference, executor, spec.action, clock=clock, recorder=Recorder())
    loop.run(2.0)
    assert loop.stopped is None, loop.stopped
sent = [[*command.joint_position_rad, *command.gripper_opening_m] for command in robot.commands]
print(json.dumps([runtime.__file__, "torch" in sys.modules, Recorder.actions, sent]))
"""
"""Drives a robot on a simulated clock with the exported policy given, and prints every action and command."""


HEAD = """
import time
import robopolicy, torch
head = robopolicy.PolicyHead(8, robopolicy.ActionSpec(arm=6, gripper=1), window=4, chunk=2)
cpu_s = time.process_time()
chunk = head(torch.randn(2, 4, 3, 8))
assert chunk.arm.shape == (2, 4, 2, 6), chunk.arm.shape
print(robopolicy.__file__, cpu_s)
"""
ASK = """
import sys
import numpy as np
from robopolicy.client import PolicyClient
with PolicyClient(sys.argv[1], port=None) as client:
    seen = {key: np.zeros(spec["shape"], spec["dtype"]) for key, spec in client.metadata["observation"].items()}
    print(client.infer({**seen, "prompt": "lift the red cube"})["actions"].shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_trains_and_serves_in_a_bare_environment(version, wheel, tmp_path, monkeypatch):
    """Guards against: a wheel that works only from the checkout, or a base installation that misses a dependency."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # pip would find the checkout there, and not install the wheel
    python = with_torch(version, tmp_path)
    pip, program = [python, "-m", "pip"], [str(python.parent / "robopolicy")]
    constrained = [*pip, "install", "-q", "-c", ROOT / "constraints.txt"]
    subprocess.run([*constrained, wheel], check=True)
    found = subprocess.run([python, "-c", HEAD], cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, cpu_s = found.stdout.split()
    assert Path(folder).is_relative_to(python.parents[1]), "not the checkout's"
    print(f"Python {version}: {float(cpu_s):.2f} s of CPU time until the head exists")
    words = ["train", "--data.files", SAMPLE, "--run-dir", "run", "--max-steps", "3", "--memory.hidden", "8"]
    subprocess.run([*program, *words], cwd=tmp_path, check=True)
    refused = subprocess.run([*program, "serve", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "robopolicy[serve]" in refused.stderr
    if python.is_relative_to(tmp_path):
        size = sum(path.lstat().st_size for path in (tmp_path / "env").rglob("*") if path.is_file())
        print(f"{size / 1e9:.2f} GB")
        assert size <= 1.2e9
    subprocess.run([*constrained, f"{wheel}[serve]"], check=True)
    with subprocess.Popen([*program, "serve", "run", "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE) as server:
        uri = next(re.search(rb"ws://[\d.:]+", line) for line in server.stdout if b"ws://" in line)[0].decode()
        asked = subprocess.run([python, "-c", ASK, uri], cwd=tmp_path, capture_output=True, text=True)
        server.terminate()
    assert asked.stdout.strip() == "(8, 7)", asked.stderr
    assert server.returncode == 0
    subprocess.run([*pip, "uninstall", "-q", "-y", "robopolicy", "msgpack", "websockets"], check=True)


@pytest.fixture
def robot_computer(tmp_path: Path) -> Path:
    """A folder with what the page "Deploy" says to copy, its robot and its two scripts."""
    from robopolicy.cli.deploy import _copy_runtime

    _copy_runtime(Path(shutil.copytree(ROOT / "tests" / "cli" / "robot_export", tmp_path / "exported")))
    page = (ROOT / "docs" / "deploy.md").read_text()
    files = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.DOTALL))
    (files["law.py"],) = re.findall(r"```python\n(import numpy as np\n[^`]*limit_targets[^`]*)```", page)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "session.py").write_text(SESSION)
    return tmp_path


def run_there(python: str | Path, folder: Path, script: str, blocked: set[str]) -> str:
    """Run a script in the folder with its runtime, without the modules `blocked`; returns what it prints."""
    code = f"{WITHOUT.format(names=blocked)}\nimport runpy; runpy.run_path({script!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": "exported/runtime:.", "OMP_NUM_THREADS": "1"}
    words = [python, "-c", code, "exported"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_runtime_works_in_a_bare_environment(version, robot_computer, tmp_path):
    """Guards against: a dependency that blocking a few names in this environment does not show."""
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-V"], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    subprocess.run([found, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"], check=True)
    run_there(python, robot_computer, "law.py", set())
    subprocess.run([python, "-m", "pip", "install", "-q", "ruckig"], check=True)
    assert re.match(r"6\d of 6\d steps acted;.* None$", run_there(python, robot_computer, "drive.py", set()))


def test_the_law_needs_numpy_and_onnxruntime_only(robot_computer):
    """Guards against: an exported policy whose executor and limits need torch, or ruckig, on the robot computer."""
    run_there(sys.executable, robot_computer, "law.py", NOT_THERE | {"ruckig"})


def test_the_loop_runs_in_the_exported_folder_as_in_the_package(robot_computer):
    """Guards against: a robot computer without torch that acts otherwise than `robopolicy run` with the same export."""
    assert re.search(r"steps acted;.* None$", run_there(sys.executable, robot_computer, "drive.py", NOT_THERE))
    there = json.loads(run_there(sys.executable, robot_computer, "session.py", NOT_THERE))
    words = [sys.executable, "session.py", "exported"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=robot_computer, env=environment, capture_output=True, text=True, timeout=600)
    here = json.loads(done.stdout)
    assert Path(here[0]).is_relative_to(ROOT)
    assert "exported/runtime" in there[0]
    assert not there[1]
    assert len(there[2]) >= 115
    for kind in (2, 3):
        np.testing.assert_allclose(there[kind], here[kind], rtol=0, atol=1e-6)
