"""The conformance kit of execution strategies; each check takes the options of a registered kind."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robopolicy.components import build
from robopolicy.control.execution import ExecutionOptions, Plans, Strategy
from robopolicy.control.executor import ChunkExecutor
from robopolicy.testing._assert import generator, random_like, require, require_close, require_equal

CHUNK, CONTROL_DT, WIDTH = 8, 0.1, 3
TOLERANCE = 1e-5
PER_EPISODE = ("old", "count", "new", "covered", "late")
"""Fields of `Plans` that have the axes of a batch."""


def frozen_steps_leave_room_for_a_new_plan(options: ExecutionOptions) -> None:
    """`frozen` is a whole number of steps, and `replan_every` more of them fit into a chunk."""
    frozen = _made(options).frozen
    require(isinstance(frozen, int) and frozen >= 0, f"frozen is {frozen!r}; expected an integer >= 0")
    room = options.replan_every + frozen <= CHUNK
    require(room, f"replan_every {options.replan_every} and frozen {frozen} exceed a chunk of {CHUNK}")


def the_first_chunk_becomes_the_plan(options: ExecutionOptions) -> None:
    """Without an old plan, the steps that the chunk covers are executed as they are."""
    for late in (0, 3):
        plans = _plans(late=late, old_steps=0)
        plan, count = _merged(_made(options), plans)
        require_close(plan[:, : CHUNK - late], plans.new[:, : CHUNK - late], TOLERANCE, "plan against the first chunk")
        require(bool((count[:, : CHUNK - late] > 0).all()), "steps of the first chunk are not counted as planned")


def uncovered_steps_have_no_action(options: ExecutionOptions) -> None:
    """`count` is 0 where neither the old plan nor the chunk reaches, and above 0 where the chunk does."""
    plans = _plans(late=4, old_steps=2)
    plan, count = _merged(_made(options), plans)
    require(plan.shape == plans.old.shape, f"plan of shape {tuple(plan.shape)}; expected {tuple(plans.old.shape)}")
    require(count.shape == plans.count.shape, f"count {tuple(count.shape)}; expected {tuple(plans.count.shape)}")
    require(not count.is_floating_point(), f"count is {count.dtype}; expected integers")
    require(bool((count[plans.covered] > 0).all()), "a step that the new chunk covers is not planned")
    reached = plans.covered | (plans.count > 0)
    require(bool((count[~reached] == 0).all()), "a step that no chunk covers is planned")


def chunks_that_agree_are_not_changed(options: ExecutionOptions) -> None:
    """Where the old plan and the new chunk are equal, the joined plan equals both."""
    plans = _plans(late=2, old_steps=5)
    covered = plans.covered[..., None]
    plans = replace(plans, new=torch.where((plans.count > 0)[..., None] & covered, plans.old, plans.new))
    plan, _ = _merged(_made(options), plans)
    both = (plans.count > 0) & plans.covered
    require_close(plan[both], plans.old[both], TOLERANCE, "joined plan where both chunks agree")


def frozen_steps_keep_the_old_plan(options: ExecutionOptions) -> None:
    """Actions that are executed while the policy still computes can't be changed any more."""
    strategy, plans = _made(options), _plans(late=0, old_steps=CHUNK)
    plan, _ = _merged(strategy, plans)
    frozen = slice(0, strategy.frozen)
    require_close(plan[:, frozen], plans.old[:, frozen], TOLERANCE, "frozen steps against the old plan")


def episodes_do_not_influence_each_other(options: ExecutionOptions) -> None:
    """An episode's plan is the same alone, in a batch, and with two batch axes."""
    strategy, plans = _made(options), _plans(late=1, old_steps=4)
    plan, count = _merged(strategy, plans)
    for index in range(len(plan)):
        rows = {name: getattr(plans, name)[index] for name in PER_EPISODE}
        alone, alone_count = _merged(strategy, replace(plans, **rows))
        require_close(alone, plan[index], TOLERANCE, "plan of a single episode against one of a batch")
        require_equal(alone_count, count[index], "count of a single episode against one of a batch")
    nested = {name: getattr(plans, name)[None] for name in PER_EPISODE}
    require_close(_merged(strategy, replace(plans, **nested))[0][0], plan, TOLERANCE, "plan with two batch axes")


def plans_are_not_written_to(options: ExecutionOptions) -> None:
    """The executor keeps the old plan for the episodes that take no chunk."""
    plans = _plans(late=1, old_steps=4)
    before = [part.clone() for part in (plans.old, plans.count, plans.new)]
    _made(options).merge(plans)
    for part, expected in zip((plans.old, plans.count, plans.new), before, strict=True):
        require_equal(part, expected, "a plan given to merge, afterwards")


def arrays_give_the_same_plan_as_tensors(options: ExecutionOptions) -> None:
    """A robot's control loop plans with NumPy arrays, a simulation with tensors."""
    plans = _plans(late=1, old_steps=4)
    try:
        plan, count = _made(options).merge(
            replace(plans, **{name: getattr(plans, name).numpy() for name in PER_EPISODE})
        )
    except Exception as error:
        raise AssertionError(f"merge of NumPy arrays raised {type(error).__name__}: {error}") from error
    expected, expected_count = _merged(_made(options), plans)
    require_close(torch.as_tensor(plan), expected, TOLERANCE, "plan from arrays against that from tensors")
    require_equal(torch.as_tensor(count), expected_count, "count from arrays against that from tensors")


def a_constant_policy_is_followed(options: ExecutionOptions) -> None:
    """In the executor, chunks of one action give that action in every control step."""
    executor = ChunkExecutor(CHUNK, CONTROL_DT, options, batch=2)
    action = torch.tensor([[0.5, -0.25, 0.125], [-1.0, 0.0, 1.0]])
    for step in range(3 * CHUNK):
        now_s = step * CONTROL_DT
        if bool(executor.needs_chunk(now_s).any()):
            executor.add(action[:, None].expand(2, CHUNK, WIDTH), now_s)
        require_close(executor.action(now_s), action, TOLERANCE, f"action of step {step}")


def _made(options: ExecutionOptions) -> Strategy:
    return build(options, CHUNK, CONTROL_DT)


def _merged(strategy: Strategy, plans: Plans) -> tuple[Tensor, Tensor]:
    """The strategy's result from a copy of the plans, in case it writes into them."""
    return strategy.merge(replace(plans, old=plans.old.clone(), count=plans.count.clone(), new=plans.new.clone()))


def _plans(late: int, old_steps: int) -> Plans:
    """Three episodes with `old_steps` planned steps each, and a chunk whose first `late` steps have passed."""
    random = generator()
    planned = torch.arange(CHUNK) < old_steps
    covered = torch.arange(CHUNK) < CHUNK - late
    return Plans(
        old=_filled(random_like(random, 3, CHUNK, WIDTH), planned),
        count=planned.long().expand(3, CHUNK).clone(),
        new=_filled(random_like(random, 3, CHUNK, WIDTH), covered),
        covered=covered.expand(3, CHUNK),
        late=torch.full((3,), late),
    )


def _filled(values: Tensor, steps: Tensor) -> Tensor:
    """The values in `steps`, and zero elsewhere."""
    return values * steps[:, None]


CHECKS: tuple[Callable[[ExecutionOptions], None], ...] = (
    frozen_steps_leave_room_for_a_new_plan,
    the_first_chunk_becomes_the_plan,
    uncovered_steps_have_no_action,
    chunks_that_agree_are_not_changed,
    frozen_steps_keep_the_old_plan,
    episodes_do_not_influence_each_other,
    plans_are_not_written_to,
    arrays_give_the_same_plan_as_tensors,
    a_constant_policy_is_followed,
)
