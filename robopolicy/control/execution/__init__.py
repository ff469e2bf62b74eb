"""Execution strategies: they merge the chunks of a policy into a plan, of which one action is executed per control step.

`make(options, chunk, control_dt)` builds a `Strategy`; its options derive from `ExecutionOptions`. Built in: `receding`
(the newest chunk replaces the plan), `ensemble` (the weighted mean of all chunks), `freeze` (keeps the plan for the steps
executed during inference, then blends it into the new chunk), `rtc` (real-time chunking: as `freeze`, with chunks that are
predicted as continuations of the plan).
"""

from collections.abc import Mapping
from typing import Any

from robopolicy.components import build, component_of, options_from, require
from robopolicy.control.execution.base import ExecutionOptions, Plans, Strategy
from robopolicy.types import PolicySpec

__all__ = ["DEFAULT_KIND", "ExecutionOptions", "Plans", "Strategy", "execution_from", "require_supported"]

DEFAULT_KIND = "receding"


def execution_from(values: Mapping[str, Any]) -> ExecutionOptions:
    """Options from a mapping such as `PolicySpec.execution`, {"kind": "receding", "replan_every": 2}.

    Raises:
        ConfigError: the kind is unknown, a name is not one of its options, or a value has the wrong type.
    """
    given = dict(values)
    return options_from("execution", given.pop("kind", DEFAULT_KIND), given)


def require_supported(spec: PolicySpec, execution: ExecutionOptions, control_dt: float) -> None:
    """Refuse a policy that does not support these execution options.

    Raises:
        ConfigError: the options need sampled chunks or continued plans, which the policy does not support; or the policy's
            longest prefix is shorter than the expected latency.
    """
    require(
        spec.samples or not execution.sample,
        "--execution.sample true needs a policy that draws its chunks: --action_head.kind flow, gmm or discrete; of exported "
        "policies, only flow",
    )
    strategy = build(execution, spec.chunk, control_dt)
    if not getattr(strategy, "continues", False):
        return
    kind, frozen = component_of(execution).kind, strategy.frozen
    require(
        spec.prefix > 0,
        f"--execution.kind {kind} needs a policy that continues a plan: train with --action_head.kind flow or with "
        "--action_head.prefix, and run its run folder; an exported or served policy continues none",
    )
    require(
        frozen <= spec.prefix,
        f"--execution.latency_s: {frozen} control steps, and the policy continues a prefix of at most {spec.prefix} "
        "actions; expect less, or train with a larger --action_head.prefix",
    )
