"""A policy trained on encoded tokens, behind the backbone that made them: images in, actions out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robopolicy.components import ConfigError, require
from robopolicy.model.encoders._tokens import FrameTokens
from robopolicy.model.inputs import checked_inputs, instruction_entries
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, Array, ArraySpec, Observation, Policy, Prediction

AUTO = "auto"
"""Value of `backbone` for the one that the run folder records."""


class LivePolicy:
    """A `Policy` that reads images: the frozen backbone makes the tokens of each frame, once, and the head acts on them.

    The tokens are rounded to float16 as in the training file. An observation that holds `tokens` goes to the head as it is.

    Args:
        policy: reads the key `tokens`.
        frame_tokens: the backbone that made the training tokens.
        prompted: whether the training demos carried instructions; if not, the backbone reads the prompt with an empty one.

    Raises:
        ConfigError: the backbone's tokens have another count or width than the policy reads.
    """

    def __init__(self, policy: Policy, frame_tokens: FrameTokens, prompted: bool) -> None:
        self.policy, self.frame_tokens = policy, frame_tokens
        self.prompted = prompted and frame_tokens.prompter is not None
        expected = policy.spec.observation[TOKENS_KEY].shape
        if frame_tokens.shape != expected:
            raise ConfigError(
                f"the backbone gives {frame_tokens.shape[0]} tokens of width {frame_tokens.shape[1]}; the policy was trained "
                f"on {expected[0]} of width {expected[1]}"
            )
        self.image_specs = {camera: ArraySpec((*size, 3), "uint8") for camera, size in frame_tokens.image_sizes.items()}
        others = {k: s for k, s in policy.spec.observation.items() if k not in (TOKENS_KEY, TOKEN_VALID_KEY)}
        self.spec = replace(
            policy.spec,
            observation={**others, **self.image_specs},
            instruction=policy.spec.instruction or self.prompted,
        )
        self.token_spec = policy.spec
        """Observation of a client that sends tokens itself."""

    @property
    def device(self) -> torch.device:
        """Device of the head."""
        return getattr(self.policy, "device", torch.device("cpu"))

    def initial_state(self, batch: int | Sequence[int] = ()) -> Any:
        """See `Policy`."""
        return self.policy.initial_state(batch)

    def act(
        self, observation: Observation | Mapping[str, Any], state: Any, *, generator: Any = None, prefix: Any = None
    ) -> tuple[Array, Any]:
        """See `Policy`."""
        prediction, state = self.predict(observation, state, generator=generator, prefix=prefix)
        return prediction.actions, state

    def predict(
        self, observation: Observation | Mapping[str, Any], state: Any, *, generator: Any = None, prefix: Any = None
    ) -> tuple[Prediction, Any]:
        """See `Policy`.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: an image is not uint8 or has another size than the training demos'.
        """
        if isinstance(observation, Observation):
            observation = {**observation.obs, "instruction": observation.instruction}
        if TOKENS_KEY not in observation:
            observation = {**observation, **self.tokens(observation)}
        return self.policy.predict(observation, state, generator=generator, prefix=prefix)

    def tokens(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """`tokens` (*B, N, D) float32 and, where the policy reads it, `token_valid` (*B, N), of one frame per entry."""
        images = checked_inputs(observation, self.image_specs, self.frame_tokens.device)
        lead = next(iter(images.values())).shape[:-3]
        flat = {camera: values.reshape(-1, *values.shape[-3:]) for camera, values in images.items()}
        tokens, valid = self.frame_tokens(flat, self._prompts(observation.get("instruction"), lead))
        found = {TOKENS_KEY: tokens.float(), TOKEN_VALID_KEY: valid.float()}
        return {
            key: values.reshape(*lead, *values.shape[1:]).to(self.device)
            for key, values in found.items()
            if key in self.token_spec.observation
        }

    def _prompts(self, instruction: str | Sequence[str | None] | None, lead: Sequence[int]) -> Tensor | None:
        """One row of token ids per frame of a batch (*B), or one for all; entries belong to the batch's first axis."""
        entries = instruction_entries(instruction, lead)
        prompts = self.frame_tokens.prompts(entries if self.prompted else (None,))
        if prompts is None or len(prompts) == 1:
            return prompts
        frames = torch.Size(lead[1:]).numel()
        return prompts.repeat_interleave(frames, dim=0)


def bind_backbone(
    policy: Policy,
    recorded: Mapping[str, Any] | None,
    backbone: str | FrameTokens,
    *,
    prompted: bool,
    device: str | torch.device = "cpu",
) -> LivePolicy:
    """The policy behind its backbone.

    Args:
        policy: trained on tokens.
        recorded: identity of the encoder that made the training tokens; None or empty if the demo files named none.
        backbone: its folder or hub name, `auto` for the recorded one, or one that is loaded already.
        prompted: whether the training demos carried instructions.
        device: where the backbone runs.

    Raises:
        ConfigError: the policy reads no tokens, nothing is recorded, or the backbone is not the recorded one.
    """
    require(
        TOKENS_KEY in policy.spec.observation,
        f"--backbone is for a policy that reads {TOKENS_KEY!r}; this one reads: {', '.join(policy.spec.observation)}",
    )
    if not recorded:
        raise ConfigError(
            "the run folder doesn't record which backbone made its training tokens; only files that `robopolicy encode` "
            "wrote do. Give tokens to the policy, or encode the demos and train again"
        )
    if isinstance(backbone, FrameTokens):
        backbone.require(recorded, "the given backbone")
        return LivePolicy(policy, backbone, prompted)
    if backbone == AUTO:
        backbone = str(recorded.get("source", ""))
        require(backbone, "the run folder names no folder of its backbone; give --backbone FOLDER_OR_NAME")
    return LivePolicy(policy, FrameTokens.recorded(recorded, backbone).to(device), prompted)
