"""A slow policy beside the control loop: called at every n-th control step."""

from robopolicy.control.inference import Inference, TimedChunk
from robopolicy.types import Prefix


class SpacedInference:
    """Requests a chunk at every n-th control step; the steps in between execute the chunks from before.

    Args:
        inference: what the requests are passed on to.
        every: n, control steps from one request to the next; >= 1.
    """

    def __init__(self, inference: Inference, every: int) -> None:
        self.inference, self.every = inference, every
        self._steps = 0

    @property
    def missed(self) -> int:
        """See `Inference`."""
        return self.inference.missed

    def request(self, t_s: float, prefix: Prefix | None = None) -> None:
        """Pass on the first request of an episode, and every n-th after it."""
        if self._steps % self.every == 0:
            self.inference.request(t_s, prefix)
        self._steps += 1

    def finished(self) -> list[TimedChunk]:
        """See `Inference`."""
        return self.inference.finished()

    def reset(self) -> None:
        """See `Inference`; the next request is passed on."""
        self._steps = 0
        self.inference.reset()

    def close(self) -> None:
        """See `Inference`."""
        self.inference.close()
