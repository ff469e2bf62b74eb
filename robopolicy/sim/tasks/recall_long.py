"""`recall` with three seconds between the lids' coming and the lamp: longer than the windows of memories are."""

from dataclasses import dataclass

from robopolicy.components import register
from robopolicy.sim.tasks.recall import Recall, RecallOptions


@dataclass(frozen=True)
class LongRecallOptions(RecallOptions):
    """Options of the task `recall_long`."""

    delay_steps: int = 60
    """Control steps from the lids' coming until the lamp is lit."""


@register("task", "recall_long", LongRecallOptions)
class LongRecall(Recall):
    """`recall` with a wait that no window covers."""

    name = "recall_long"
