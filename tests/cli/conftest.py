"""A run folder with a policy of random weights, for the verbs that open one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robopolicy.config import EncoderConfig, ExecutionConfig, ExperimentConfig, HeadConfig
from robopolicy.model.checkpoint import save_policy
from robopolicy.model.normalization import Statistics
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.text import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for `reach` that looks at the gripper's pose and reads the instruction."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(50, 7))
    config = ExperimentConfig(
        encoder=EncoderConfig(width=8, hidden=8),
        head=HeadConfig(window=3, chunk=2, hidden=8, layers=1, head_widths=(8,)),
        execution=ExecutionConfig(replan_every=2),
    )
    policy = ChunkPolicy(
        config,
        ActionSpec(arm=6, gripper=1, gripper_values=((-1.0, 1.0),), kind="delta", space="ee", rate_hz=20.0),
        {"ee_pose": ArraySpec((7,))},
        Vocabulary.of(["touch the red cube", "touch the green cube", "touch the blue cube"]),
        obs_statistics={"ee_pose": Statistics.of(rows)},
        action_statistics=Statistics.of(np.sign(rows)),
    )
    folder = tmp_path_factory.mktemp("runs") / "reach"
    save_policy(policy.eval(), folder, {"task": "reach", "demo_seeds": list(range(5))})
    return folder
