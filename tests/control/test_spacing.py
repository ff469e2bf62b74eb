"""A slow policy, asked at every n-th control step."""

from dataclasses import replace

import pytest
from jsonargparse import Namespace

from robopolicy.cli.drivers import _steps_per_call
from robopolicy.components import ConfigError
from robopolicy.control.spacing import SpacedInference
from tests.serving import SPEC


class Recorded:
    """Keeps the times of its requests."""

    missed = 0

    def __init__(self):
        self.times, self.resets = [], 0

    def request(self, t_s, prefix=None):
        """Keep the time."""
        self.times.append(t_s)

    def finished(self):
        """Nothing."""
        return []

    def close(self):
        """Nothing."""

    def reset(self):
        """Count."""
        self.resets += 1


def test_every_nth_step_is_asked_and_an_episode_begins_with_one():
    """Guards against: frames at another distance than in training, or a robot that waits at the start of an episode."""
    asked = Recorded()
    spaced = SpacedInference(asked, 3)
    for step in range(7):
        spaced.request(float(step))
    spaced.reset()
    spaced.request(7.0)
    spaced.request(8.0)
    assert asked.times == [0.0, 3.0, 6.0, 7.0]
    assert asked.resets == 1


@pytest.mark.parametrize("every", [0, 3, 8])
def test_a_spacing_that_the_memory_or_the_chunk_does_not_fit_is_refused(every):
    """Guards against: a memory with frames at a distance that it was never trained on."""
    spec = replace(SPEC, frame_stride=8, chunk=4)
    with pytest.raises(ConfigError, match=f"--actions-per-call {every}: the policy's chunks have 4 actions"):
        _steps_per_call(Namespace(actions_per_call=every), spec)
    assert _steps_per_call(Namespace(actions_per_call=4), spec) == 4
