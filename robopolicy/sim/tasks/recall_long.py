"""`recall` with three seconds from the cue to the lamp: longer than the window of a memory."""

from dataclasses import dataclass

from robopolicy.components import register
from robopolicy.sim.tasks.recall import Recall, RecallOptions


@dataclass(frozen=True)
class LongRecallOptions(RecallOptions):
    """Options of the task `recall_long`."""

    delay_steps: int = 60
    """Control steps from when the lids cover the cubes until the lamp is lit."""


@register("task", "recall_long", LongRecallOptions)
class LongRecall(Recall):
    """`recall` with a wait that is longer than any window used here."""
