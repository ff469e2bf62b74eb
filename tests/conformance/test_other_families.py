"""The shipped conformance kits, over every kind of the families outside of the model; registering a new kind covers it."""

from dataclasses import replace

import pytest

from robopolicy.components import build, component, kinds
from robopolicy.testing import augmentation, execution, loss, task

CONTEXT = replace(loss.CONTEXT, predictions={"attended": 3, "selected": 4})
"""With the predictions of the encoders that losses need."""
VISIBLE = {"color": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}}
"""Options of the augmentations that change nothing by default."""


@pytest.mark.parametrize("kind", kinds("loss"))
@pytest.mark.parametrize("check", loss.CHECKS)
def test_every_loss_keeps_the_contract(kind, check):
    """Guards against: padding that counts, and a mean over nothing that is NaN."""
    check(lambda context: build(component("loss", kind).options(), context), CONTEXT)


@pytest.mark.parametrize("kind", kinds("augmentation"))
@pytest.mark.parametrize("check", augmentation.CHECKS)
def test_every_augmentation_keeps_the_contract(kind, check):
    """Guards against: a camera that jumps within a segment, and noise that a resumed run draws otherwise."""
    options = component("augmentation", kind).options(**VISIBLE.get(kind, {}))
    check(lambda inputs: build(options, inputs))


@pytest.mark.parametrize("kind", kinds("execution"))
@pytest.mark.parametrize("replan_every", [1, 3])
@pytest.mark.parametrize("check", execution.CHECKS)
def test_every_execution_keeps_the_contract(kind, replan_every, check):
    """Guards against: an action that no chunk predicted, or that the robot already executes and that changes."""
    options = component("execution", kind).options
    latency = {"latency_s": 0.2} if "latency_s" in options.__dataclass_fields__ else {}
    check(options(replan_every=replan_every, **latency))


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds("task"))
@pytest.mark.parametrize("check", task.CHECKS)
def test_every_task_keeps_the_contract(kind, check):
    """Guards against: a task whose seed does not determine its start, or that its expert can't solve."""
    check(kind)
