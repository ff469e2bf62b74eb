"""`--intervene`: a kind, an address, a file, or a factory of the user's own -> the operator of `robopolicy run`."""

from collections.abc import Mapping
from typing import Any

from robopolicy.cli.parsing import imported
from robopolicy.cli.robots import kind_and_options
from robopolicy.components import ConfigError, build, component
from robopolicy.control.operators.base import OperatorContext
from robopolicy.control.robot import Operator
from robopolicy.experiment.reading import section_from

SCHEMES: Mapping[str, tuple[str, dict[str, Any]]] = {"ws": ("leader", {}), "wss": ("leader", {"tls": True})}
"""Scheme of an address -> kind of operator, and options that follow from it."""


def make_operator(source: str, context: OperatorContext) -> Operator:
    """The operator that `--intervene` names, with the device opened.

    Raises:
        ConfigError: it has another form, the kind or an option is unknown, or the device can't be opened.
    """
    if source.partition(":")[2].isidentifier():
        operator = imported("--intervene", source, "an OperatorContext")(context)
    else:
        kind, given = kind_and_options("operator", source, SCHEMES)
        options = section_from(component("operator", kind).options, given, "operator", f"operator {kind!r}")
        operator = build(options, context)
    if not isinstance(operator, Operator):
        raise ConfigError(
            f"--intervene {source} made a {type(operator).__name__} without act and close: not an Operator"
        )
    return operator
