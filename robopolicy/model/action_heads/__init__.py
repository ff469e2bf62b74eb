"""Action heads: they map hidden vectors to chunks of K actions.

`Cls(options, hidden_width, action)` builds a head for hidden vectors `hidden_width` = H wide and the arm and gripper
columns of `action`, normalized: arm columns in [-1, 1], binary gripper labels in {0, 1}. Options of
its loss functions belong to the head; the weights of the losses are in the config's `losses`. The options of every kind have
the field `chunk`, K.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robopolicy.types import Chunk


@runtime_checkable
class ActionHead(Protocol):
    """Interface of every action head, which is an `nn.Module`. `robopolicy.testing.action_head` checks it."""

    loss_names: Sequence[str]
    """Names of the losses among the entries that `losses` returns, in order; the other entries are metrics."""
    samples: bool
    """Whether `decode` samples with `generator`; False: the output is the same with and without a generator."""
    uses_prefix: bool
    """Whether `decode` accepts a `prefix`; if False, it raises ValueError when given one."""
    chunk: int
    """K, actions per hidden vector."""
    # Optional attributes: `guided`, whether `decode` also takes `frozen`; `max_prefix`, the longest prefix, if less than K.

    def losses(self, hidden: Tensor, labels: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Named scalars, unweighted: each of `loss_names`, and metrics such as `gripper_accuracy`.

        Each is the mean over the valid entries, 0 if there are none. Invalid entries, NaN included, reach neither the
        value nor the gradient. A head that samples noise draws it from torch's global generator, row by row.

        Args:
            hidden: (*B, H).
            labels: (*B, K, A+G), arm in [-1, 1], then gripper labels in {0, 1}.
            valid: bool (*B, K), False beyond the end of the demo.
        """
        ...

    def decode(
        self, hidden: Tensor, *, generator: torch.Generator | None = None, prefix: Tensor | None = None
    ) -> Chunk:
        """The chunk at each hidden vector (*B, H): arm (*B, K, A) in [-1, 1], gripper logits (*B, K, G).

        Args:
            hidden: any number of leading axes.
            generator: random numbers for a head that samples; None: the output is deterministic, the most probable action where
                that has a closed form.
            prefix: (*B, k, A+G) with k <= K, actions that will be executed in any case; the chunk begins with exactly these.
                A row of NaN holds no action: the episodes of a batch may have different numbers of them.
        """
        ...
