"""Evaluations as `robopolicy eval` writes them."""

from typing import Any

import pytest

from robopolicy.rollout.statistics import wilson_interval


@pytest.fixture
def evaluation():
    """Makes an evaluation of `lift` in which these seeds succeed, of twenty."""

    def made(solved: set[int]) -> dict[str, Any]:
        outcomes = [
            {"seed": seed, "instruction": "lift <it>", "success": seed in solved, "steps": 30 + seed}
            for seed in range(20)
        ]
        return {
            "success_rate": len(solved) / 20,
            "successes": len(solved),
            "episodes": 20,
            "task": "lift",
            "interval": wilson_interval(len(solved), 20),
            "mean_steps": 39.5,
            "control_dt": 0.05,
            "per_instruction": {"lift <it>": [len(solved), 20]},
            "in_a_row": [],
            "outcomes": outcomes,
            "inference_s": 1.0,
            "physics_s": 2.0,
            "wall_s": 3.0,
            "env_steps": 790,
            "provenance": {"policy": "runs/<lift>"},
        }

    return made
