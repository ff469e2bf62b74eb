"""The execution family: how the chunks of a policy become the plan whose actions are executed, one per control step.

`make(options, chunk, control_dt)` builds a `Strategy`; its options derive from `ExecutionOptions`. Built in: `receding`
(the newest chunk replaces the plan), `ensemble` (the weighted mean of all chunks), `freeze` (soft blend behind the steps
that pass during inference).
"""

from collections.abc import Mapping
from typing import Any

from robopolicy.components import ConfigError, options_from
from robopolicy.control.execution.base import ExecutionOptions, Plans, Strategy

__all__ = ["DEFAULT_KIND", "ExecutionOptions", "Plans", "Strategy", "execution_from"]

DEFAULT_KIND = "receding"


def execution_from(values: Mapping[str, Any]) -> ExecutionOptions:
    """Options from a mapping such as `PolicySpec.execution`, {"kind": "receding", "replan_every": 2}.

    Raises:
        ConfigError: the kind is unknown, has no option of one of these names, or a value has the wrong type.
    """
    given = dict(values)
    kind = given.pop("kind", DEFAULT_KIND)
    try:
        return options_from("execution", kind, given)
    except TypeError as error:
        raise ConfigError(f"execution: values of {kind!r} have the wrong type: {given}") from error
