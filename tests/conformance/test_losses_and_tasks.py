"""The shipped conformance kits, over every auxiliary loss and every task; a new kind is covered by registering it."""

from dataclasses import replace

import pytest

from robopolicy.components import build, component, kinds
from robopolicy.testing import loss, task

CONTEXT = replace(loss.CONTEXT, predictions={"attended": 3, "selected": 4})
"""With the predictions of the encoders that losses need."""


@pytest.mark.parametrize("kind", kinds("loss"))
@pytest.mark.parametrize("check", loss.CHECKS)
def test_every_loss_keeps_the_contract(kind, check):
    """Guards against: padding that counts, and a mean over nothing that is NaN."""
    check(lambda context: build(component("loss", kind).options(), context), CONTEXT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds("task"))
@pytest.mark.parametrize("check", task.CHECKS)
def test_every_task_keeps_the_contract(kind, check):
    """Guards against: a task whose seed does not determine its start, or that its expert can't solve."""
    check(kind)
