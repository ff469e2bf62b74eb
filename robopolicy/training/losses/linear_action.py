"""The loss `linear_action`: linear policies that train the selection from a group of keys (encoder `keys`)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robopolicy.components import NoOptions, register, require
from robopolicy.model.losses import masked_mean
from robopolicy.training.losses import LossContext, LossInputs


@register("loss", "linear_action")
class LinearAction(nn.Module):
    """Mean squared error of linear predictions of the current action's arm columns from the keys of a group.

    A linear policy can't memorize the training scenes, so its gradient keeps showing which object of a group the
    demonstrated actions depend on. The gradient of the main policy vanishes once it has memorized the scenes.

    The loss sums three terms. (1) The error of one linear policy on the selected values. Alone, this term can converge to
    the wrong selection: at first the selected value is the mean over all objects, and the demonstrated motion leads away
    from this mean. A policy that moves away from its input then lowers its error by selecting all objects except the
    named one. (2) The errors of one linear policy per key of a group, whose weights depend on the instruction. (3) The
    errors of (2), weighted by each selection's attention weights and without gradient into (2): this moves every selection
    to the key with the smallest error. Where several objects matter, term (1) makes the selections differ.
    """

    def __init__(self, options: NoOptions, context: LossContext) -> None:
        super().__init__()
        widths = context.predictions
        require(
            widths.get("selected", 0),
            "--losses.linear_action needs an encoder that selects from a group; give --encoder.groups",
        )
        self.act = nn.Linear(widths["selected"], context.arm_width)
        # Zeros, so that the demonstrated actions, not random weights, decide whether it moves towards an object or away.
        nn.init.zeros_(self.act.weight)
        self.each = nn.ModuleDict()
        for group, choices in choices_of(widths).items():
            size = widths[choices[0]] * context.arm_width * (widths[f"keys_{group}"] + 1)
            self.each[group] = linear = nn.Linear(widths["sentence"], size)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The loss, a scalar: sum of the three terms, averaged over the valid actions."""
        seen = inputs.predictions
        predicted = self.act(seen["selected"]).float()
        expected = torch.as_tensor(inputs.batch.target, device=predicted.device)[..., 0, : predicted.shape[-1]]
        valid = torch.as_tensor(inputs.batch.action_valid, device=predicted.device)[..., :1]
        expected = torch.where(valid, expected, 0.0)
        error = masked_mean((predicted - expected).square(), valid)
        for group, choices in choices_of(seen).items():
            actions = self._actions(group, seen["sentence"], seen[f"keys_{group}"])
            errors = (actions - expected[..., None, :]).square().mean(-1)
            error = error + masked_mean(errors, valid)
            for choice in choices:
                error = error + masked_mean((seen[choice].float() * errors.detach()).sum(-1, keepdim=True), valid)
        return error

    def _actions(self, group: str, sentence: Tensor, keys: Tensor) -> Tensor:
        """(B, S, keys, arm) action predicted from each key by its own linear policy; only these policies get a gradient."""
        # The appended 1 adds a bias to each linear policy.
        values = nn.functional.pad(keys.detach(), (0, 1), value=1.0)
        maps = self.each[group](sentence.detach()).unflatten(-1, (keys.shape[-2], -1, values.shape[-1]))
        return (maps @ values[..., None])[..., 0].float()


def choices_of(predictions: Iterable[str]) -> dict[str, list[str]]:
    """Group -> names of its predictions `choice_<n>_<group>`."""
    found: dict[str, list[str]] = {}
    for name in predictions:
        if name.startswith("choice_"):
            found.setdefault(name.split("_", 2)[2], []).append(name)
    return found
