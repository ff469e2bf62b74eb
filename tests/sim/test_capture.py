"""Functions captured as CUDA graphs; on the CPU they run unchanged."""

import pytest
import torch

from robopolicy.sim.capture import WARM_UPS, Captured


def calls(device: str) -> list[float]:
    """Sums of what a captured function answers to changing inputs."""
    scale = torch.ones(1, device=device)
    captured = Captured(lambda a, b: (a * scale + b, a - b))
    return [
        sum(float(each.sum()) for each in captured(torch.full((3,), float(i), device=device), scale))
        for i in range(WARM_UPS + 4)
    ]


def test_answers_follow_the_inputs():
    """Guards against: a graph replayed on its first inputs, so that a policy acts on one image for ever."""
    assert calls("cpu") == [6.0 * i for i in range(WARM_UPS + 4)]


@pytest.mark.gpu
def test_a_captured_function_answers_as_the_function_itself():
    """Guards against: a captured function that gives other outputs than the function itself."""
    assert calls("cuda") == calls("cpu")
