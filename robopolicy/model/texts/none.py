"""No instruction: the unconditioned baseline."""

from dataclasses import dataclass

from robopolicy.components import register
from robopolicy.model.texts import TextInputs


@dataclass(frozen=True)
class NoTextOptions:
    """The text model `none` has no options."""


@register("text", "none", NoTextOptions)
def make_no_text(options: NoTextOptions, inputs: TextInputs) -> None:
    """Returns None: the policy does not read the instruction, even if the demos have one."""
