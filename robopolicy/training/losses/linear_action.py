"""The loss `linear_action`: linear policies on the values that the instruction selects from a group of keys."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robopolicy.components import ConfigError, NoOptions, register
from robopolicy.model.losses import masked_mean
from robopolicy.training.losses import LossContext, LossInputs


@register("loss", "linear_action")
class LinearAction(nn.Module):
    """Mean squared error of the present action's arm columns, predicted linearly from keys of a group.

    A linear policy can't memorize the training scenes, so its gradient keeps indicating which object of a group the
    demonstrated actions follow; the gradient of the policy itself vanishes once the scenes are memorized.

    One linear policy acts on the selected values. Alone it could settle on the opposite: objects lie apart from each
    other, so the demonstrated motion leads away from the mean of all, which it sees at first; a policy that moves away
    from what it sees then gains by selecting all objects but the named one. So each key of a group also has a linear
    policy of its own under each instruction, and every choice moves to the key whose policy errs least, whatever the
    sign; the policy on the selected values tells the choices apart where more than one object matters.
    """

    def __init__(self, options: NoOptions, context: LossContext) -> None:
        super().__init__()
        widths = context.predictions
        if not widths.get("selected", 0):
            raise ConfigError(
                "--losses.linear_action needs an encoder that selects from a group; give --encoder.groups"
            )
        self.act = nn.Linear(widths["selected"], context.arm_width)
        # From zero, so that it follows its first object with the sign of the demonstrated actions.
        nn.init.zeros_(self.act.weight)
        self.each = nn.ModuleDict()
        for group, choices in choices_of(widths).items():
            size = widths[choices[0]] * context.arm_width * (widths[f"keys_{group}"] + 1)
            self.each[group] = linear = nn.Linear(widths["sentence"], size)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, inputs: LossInputs) -> Tensor:
        """A scalar, over the valid actions."""
        seen = inputs.predictions
        predicted = self.act(seen["selected"]).float()
        wanted = torch.as_tensor(inputs.batch.target, device=predicted.device)[..., 0, : predicted.shape[-1]]
        valid = torch.as_tensor(inputs.batch.action_valid, device=predicted.device)[..., :1]
        wanted = torch.where(valid, wanted, 0.0)
        error = masked_mean((predicted - wanted).square(), valid)
        for group, choices in choices_of(seen).items():
            actions = self._actions(group, seen["sentence"], seen[f"keys_{group}"])
            errors = (actions - wanted[..., None, :]).square().mean(-1)
            error = error + masked_mean(errors, valid)
            for choice in choices:
                error = error + masked_mean((seen[choice].float() * errors.detach()).sum(-1, keepdim=True), valid)
        return error

    def _actions(self, group: str, sentence: Tensor, keys: Tensor) -> Tensor:
        """(B, S, keys, arm) the actions of each key's own policy; only these policies get a gradient."""
        values = nn.functional.pad(keys.detach(), (0, 1), value=1.0)
        maps = self.each[group](sentence.detach()).unflatten(-1, (keys.shape[-2], -1, values.shape[-1]))
        return (maps @ values[..., None])[..., 0].float()


def choices_of(predictions: Iterable[str]) -> dict[str, list[str]]:
    """The names of the predictions `choice_<n>_<group>`, by group."""
    found: dict[str, list[str]] = {}
    for name in predictions:
        if name.startswith("choice_"):
            found.setdefault(name.split("_", 2)[2], []).append(name)
    return found
