"""`robopolicy run --intervene`: from a takeover to a demo file to a training that favors it."""

import json
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.cli.run import run
from robopolicy.components import ConfigError
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, load_policy, save_policy
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL

SCRIPTED = """
import numpy as np


class Scripted:
    def __init__(self, context):
        self.context, self.step = context, -1

    def act(self, t_s, qpos, policy_action):
        self.step += 1
        up = np.array([0, 0, 0.5, 0, 0, 0])
        return self.context.tool_action(up, 0.0, qpos) if 4 <= self.step < 9 else None

    def close(self):
        pass


def nothing(context):
    return object()
"""
SIMULATED = ["--robot", "sim", "--task", "reach", "--realtime", "false", "--seconds", "0.8"]
SIMULATED += ["--command-hz", "200", "--deadline", "20"]


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run folder of an untrained policy; `scripted_operator` can be imported."""
    (tmp_path / "scripted_operator.py").write_text(SCRIPTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = ExperimentConfig().change(SMALL)
    facts = DemoFacts(
        ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0), {"ee_pose": ArraySpec((7,))}
    )
    return str(save_policy(build_policy(config, facts), tmp_path / "start", {"task": "reach", "control_dt": 0.05}))


def test_a_takeover_is_recorded_and_trained_on(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against: corrections that look like the policy's own steps, or that a policy is shown."""
    record, figures = tmp_path / "corrected.hdf5", tmp_path / "run.json"
    files = ["--record", str(record), "--json", str(figures)]
    assert run([policy, *SIMULATED, "--intervene", "scripted_operator:Scripted", *files]) == 0
    assert "operator  5 of" in capsys.readouterr().out
    assert json.loads(figures.read_text())["operated"] == 5
    with DemoFile(record) as file:
        demo, spec = file.read("demo_0"), file.action_spec
        privileged = file.attributes["env_args"]["privileged"]
    operated = demo.obs["intervention"][:, 0] > 0
    assert np.flatnonzero(operated).tolist() == [4, 5, 6, 7, 8]
    np.testing.assert_allclose(demo.actions[operated], np.tile([0, 0, 0.5, 0, 0, 0, -1], (5, 1)), atol=1e-6)
    np.testing.assert_allclose(demo.actions[~operated], demo.obs["policy_action"][~operated])
    assert np.abs(demo.actions - demo.obs["policy_action"])[operated].max() > 0.1
    assert {"intervention", "policy_action"} <= {*privileged}
    assert spec is not None

    config = ExperimentConfig().change(
        SMALL
        | {
            "data.files": [str(record)],
            "data.valid_fraction": 0.0,
            "data.intervention_weight": 4.0,
            "data.batch_size": 400,
        }
    )
    data = DemoDataModule(config, "cpu")
    data.setup()
    assert not {"intervention", "policy_action"} & {*data.obs}
    starts, _ = data.train_dataloader().order.epoch(0)
    share = 4 * 5 / (4 * 5 + len(demo) - 5)
    assert np.mean(operated[np.ravel(starts)]) == pytest.approx(share, abs=0.1)
    data.teardown()

    small = ["--memory.hidden", "8", "--encoder.width", "8", "--data.valid_fraction", "0"]
    small += ["--max-steps", "2", "--training.select", "last"]
    run_dir = str(tmp_path / "better")
    words = ["--data.files", str(record), "--data.intervention_weight", "4", "--run-dir", run_dir, *small]
    assert main(["train", *words]) == 0
    assert "intervention" not in load_policy(run_dir).spec.observation


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("scripted_operator:nothing", "returned a value of type object; expected an Operator, with act and close"),
        ("scripted_operator:missing", "--intervene scripted_operator:missing can't be imported"),
        ("joystick", "operator 'joystick' is unknown; choose one of keyboard, leader, spacemouse"),
        ("rosbridge://h:1", "unknown scheme 'rosbridge'; expected ws, wss"),
        ("ws://127.0.0.1:9", "no robot at 127.0.0.1:9"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused(policy: str, device: str, message: str) -> None:
    """Guards against: a robot that moves although its operator can't reach it."""
    with pytest.raises((ConfigError, ConnectionError), match=message):
        run([policy, *SIMULATED, "--intervene", device])


def test_a_weight_without_interventions_is_refused(tiny_demos: Path) -> None:
    """Guards against: a weight that changes nothing, unnoticed."""
    config = ExperimentConfig().change(SMALL | {"data.files": [str(tiny_demos)], "data.intervention_weight": 2.0})
    with pytest.raises(ConfigError, match="no step with `intervention` 1"):
        DemoDataModule(config, "cpu").setup()
