"""A run folder with a policy of random weights, for the verbs that open one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, save_policy
from robopolicy.model.normalization import Statistics
from robopolicy.model.texts import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for `reach` that looks at the gripper's pose and reads the instruction."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(50, 7))
    config = ExperimentConfig().change(SMALL | {"execution.replan_every": 2})
    facts = DemoFacts(
        ActionSpec(arm=6, gripper=1, gripper_values=((-1.0, 1.0),), kind="delta", space="ee", rate_hz=20.0),
        {"ee_pose": ArraySpec((7,))},
        Vocabulary.of(["touch the red cube", "touch the green cube", "touch the blue cube"]),
        obs_statistics={"ee_pose": Statistics.of(rows)},
        action_statistics=Statistics.of(np.sign(rows)),
    )
    policy = build_policy(config, facts)
    folder = tmp_path_factory.mktemp("runs") / "reach"
    save_policy(policy.eval(), folder, {"task": "reach", "demo_seeds": list(range(5))})
    return folder
