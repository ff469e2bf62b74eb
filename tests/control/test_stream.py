"""A policy as a stream: whose memory is whose."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robopolicy.control.stream import PolicyStream
from robopolicy.types import ActionSpec, Observation, PolicySpec, Prediction


@dataclass(frozen=True)
class Seen:
    """The frames that each episode remembers, as one row of text each."""

    rows: tuple[str, ...]

    def reset(self, done: Any) -> "Seen":
        """Forget."""
        return Seen(tuple("" if over else row for row, over in zip(self.rows, done, strict=True)))


@dataclass
class RememberingPolicy:
    """Predicts zeros, and remembers which frames it was given."""

    spec: PolicySpec = field(default_factory=lambda: PolicySpec({}, ActionSpec(arm=1, gripper=0), chunk=2, window=1))
    seen_rows: list[tuple[str, ...]] = field(default_factory=list)

    def initial_state(self, batch: int) -> Seen:
        """Nothing."""
        return Seen(("",) * batch)

    def act(self, observation: Observation | Mapping[str, Any], state: Seen) -> tuple[np.ndarray, Seen]:
        """As `predict`."""
        prediction, state = self.predict(observation, state)
        return prediction.actions, state

    def predict(self, observation: Observation | Mapping[str, Any], state: Seen) -> tuple[Prediction, Seen]:
        """One more frame."""
        frame = observation.obs["frame"] if isinstance(observation, Observation) else observation["frame"]
        seen = Seen(tuple(row + str(now) for row, now in zip(state.rows, frame, strict=True)))
        self.seen_rows.append(seen.rows)
        return Prediction(np.full((len(seen.rows), 2, 1), 0.0)), seen


def test_each_frame_joins_the_memory_of_its_own_episode_until_that_is_reset():
    """Guards against: one reset for the whole batch, or none: the next episode begins with the last one's memory."""
    policy = RememberingPolicy()
    stream = PolicyStream(policy, batch=2)
    for tick in range(4):
        if tick == 2:
            stream.reset(np.array([True, False]))
        stream(Observation({"frame": [tick, tick + 5]}))
    assert policy.seen_rows == [("0", "5"), ("01", "56"), ("2", "567"), ("23", "5678")]
    stream.reset()
    stream({"frame": [9, 9]})
    assert policy.seen_rows[-1] == ("9", "9")


def test_with_a_frame_stride_every_tick_is_answered_from_every_nth_frame_before_it():
    """Guards against: a policy trained on every third frame that is shown all, and remembers a third of the time."""
    policy = RememberingPolicy()
    stream = PolicyStream(policy, batch=1, frame_stride=3)
    for tick in range(7):
        stream({"frame": [tick]})
    assert [rows[0] for rows in policy.seen_rows] == ["0", "1", "2", "03", "14", "25", "036"]
    stream.reset(np.array([True]))
    stream({"frame": [7]})
    stream({"frame": [8]})
    assert [rows[0] for rows in policy.seen_rows[-2:]] == ["7", "8"]


def test_the_grippers_logits_are_kept_beside_the_actions():
    """Guards against: a hysteresis that gets values already rounded to open and closed."""

    class WithLogits(RememberingPolicy):
        def predict(self, observation, state):
            prediction, state = super().predict(observation, state)
            return Prediction(prediction.actions + 7, torch.tensor([[[0.3], [-0.2]]])), state

    stream = PolicyStream(WithLogits(), batch=1)
    assert stream({"frame": [0]}).flatten().tolist() == [7.0, 7.0]
    assert stream.gripper_logit is not None
    torch.testing.assert_close(stream.gripper_logit, torch.tensor([[[0.3], [-0.2]]]))
    without = PolicyStream(RememberingPolicy(), batch=1)
    without({"frame": [0]})
    assert without.gripper_logit is None
