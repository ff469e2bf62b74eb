"""No instruction: the unconditioned baseline."""

from robopolicy.components import NoOptions, register
from robopolicy.model.texts import TextInputs


@register("text", "none")
def make_no_text(options: NoOptions, inputs: TextInputs) -> None:
    """Returns None: the policy does not read the instruction, even if the demos have one."""
