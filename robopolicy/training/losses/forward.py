"""The loss `forward`: the memory predicts the next pooled frame."""

import torch
from torch import Tensor, nn

from robopolicy.components import NoOptions, register, require
from robopolicy.model.losses import cut_windows, masked_mean
from robopolicy.training.losses import LossContext, LossInputs


@register("loss", "forward")
class ForwardPrediction(nn.Module):
    """Mean squared error of the next frame's pooled vector, predicted linearly from the memory's output.

    No gradient flows into the frame to predict: otherwise the encoder could lower the error by making all frames equal.
    """

    def __init__(self, options: NoOptions, context: LossContext) -> None:
        super().__init__()
        self.predict = nn.Linear(context.hidden_width, context.pooled_width)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The loss, a scalar: mean over the next frames that are real.

        Raises:
            ConfigError: windows of one frame have no next frame.
        """
        window = inputs.hidden.shape[2]
        require(window >= 2, "--losses.forward needs windows of 2 or more frames; --memory.window is 1")
        predicted = self.predict(inputs.hidden[:, :, :-1])
        following = cut_windows(inputs.pooled.detach(), window)[:, :, 1:]
        valid = cut_windows(inputs.frame_valid, window)[:, :, 1:, None]
        error = torch.where(valid, predicted.float() - following.float(), 0.0).square()
        return masked_mean(error, valid)
