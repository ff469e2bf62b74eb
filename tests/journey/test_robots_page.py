"""The code of docs/robots.md, run as it is printed."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from robopolicy.cli import main
from robopolicy.cli.drivers import Driver
from robopolicy.cli.robots import make_robot
from robopolicy.cli.run import _parser
from robopolicy.components import options_from
from robopolicy.control.execution import execution_from
from robopolicy.control.replay import Record, RecordedStream
from robopolicy.control.robots.websocket import WebsocketRobot
from robopolicy.control.serving.access import trusted
from robopolicy.testing.robot import CHECKS
from robopolicy.types import ActionSpec, PolicySpec
from tests.journey.test_docs import DOCS, FENCE
from tests.journey.test_readme import ROOT
from tests.serving import self_signed
from tests.waiting import PATIENCE_S

PAGE = (DOCS / "robots.md").read_text()
PRINTED = {fence["file"]: fence["text"] for fence in FENCE.finditer(PAGE) if fence["file"]}
ARM = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name, text in PRINTED.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    yield tmp_path
    for name in ("my_arm", "serve_arm"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["my_arm.py", "serve_arm.py"])
def test_the_printed_files_have_forty_lines_at_most(name):
    """Guards against: forty lines that grow."""
    assert len(PRINTED[name].splitlines()) <= 40


def test_the_printed_robot_keeps_the_contract(folder):
    """Guards against: an example that no longer works with the contract it explains."""
    snippets = [fence["text"] for fence in FENCE.finditer(PAGE) if fence["language"] == "python" and not fence["file"]]
    namespace: dict[str, object] = {}
    for text in snippets:
        exec(text, namespace)
    driver = Driver(
        RecordedStream(Record(np.zeros((4, 7)), ARM), 0.05), PolicySpec({}, ARM, 4, 1), 0.05, execution_from({})
    )
    made = make_robot(_parser().parse_args(["run", "--robot", "my_arm:MyArm"]), driver)
    assert (type(made).__name__, made.control_dt) == ("MyArm", 0.05)


def test_the_printed_server_is_driven_with_a_key_over_tls(folder):
    """Guards against: a robot that can't be served as the page says, with wss and a key."""
    (folder / "key").write_text("a key of sixteen characters or more")
    certificate, private_key = self_signed(folder)
    words = ["serve_arm.py", "127.0.0.1", "0", "key", str(certificate), str(private_key), "30"]
    command = [sys.executable, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        port = int(re.search(r"on 127.0.0.1:(\d+)", process.stdout.readline())[1])  # type: ignore[index]
        key, tls = (folder / "key").read_text(), trusted(str(certificate))
        try:
            with WebsocketRobot("127.0.0.1", port, PATIENCE_S, key, tls) as robot:
                for check in CHECKS:  # the last one stops it
                    check(robot)
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("name", ["robot.yaml", "so101.yaml"])
def test_the_printed_files_of_robots_hold_known_options(name):
    """Guards against: a robot.yaml with an option that no longer exists."""
    values = yaml.safe_load(PRINTED[name])
    kind = values.pop("kind")
    made = options_from("robot", kind, values)
    assert made.profile in ("viperx_pair", "so101")


@pytest.mark.slow
def test_the_page_s_two_arms_hand_over_and_replay(folder):
    """Guards against: the page's commands, in which two arms pass a bar and repeat it within their limits."""
    from tests.journey.test_docs import COMMAND

    fences = [fence["text"] for fence in FENCE.finditer(PAGE) if fence["language"] == "bash"]
    for command in [line for text in fences for line in COMMAND.findall(text)]:
        assert main(command.split()[1:]) == 0
