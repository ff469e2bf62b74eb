"""Computes the tokens of a frame from images and instruction, in the same way ahead of time and on the robot."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float16
from torch import Tensor, nn

from robopolicy.components import ConfigError, require
from robopolicy.model.encoders._backbones import Reading
from robopolicy.model.encoders._loading import ACTION_TOKENS, Dtype, identity_difference, load_backbone
from robopolicy.model.texts.prompt import Prompter

BATCH_FRAMES = 32
"""Frames per forward pass of the backbone."""


class FrameTokens(nn.Module):
    """A frozen backbone with everything else that determines its tokens: cameras, image sizes, prompt.

    Args:
        model: local folder or hub name of the backbone.
        image_sizes: camera -> (height, width) of its images [pixels], in the order in which the backbone reads them.
        template: the prompt; `{instruction}` stands for the instruction.
        prompt_tokens: tokens of a prompt; longer ones are cut off. None: as many as the longest of `instructions` needs.
        instructions: the instructions that will be read; not used if `prompt_tokens` is given.
        reading: which of the hidden states become tokens.
        dtype: type of the backbone's weights.

    Raises:
        ImportError: `transformers` isn't installed.
        ConfigError: the model is not found, or can't be read.
    """

    def __init__(
        self,
        model: str,
        image_sizes: Mapping[str, tuple[int, int]],
        template: str = "{instruction}",
        prompt_tokens: int | None = None,
        instructions: Iterable[str] = (),
        reading: Reading | None = None,
        dtype: Dtype = "auto",
    ) -> None:
        super().__init__()
        self.image_sizes = dict(image_sizes)
        self.backbone = load_backbone(model, next(iter(image_sizes.values())), reading, dtype=dtype)
        require(
            not any(parameter.requires_grad for parameter in self.backbone.parameters()),
            f"readout action_token: {model} has no {ACTION_TOKENS} with the learned vectors; `convert` writes it from a "
            "RoboVLMs checkpoint, and --encoder.kind transformers learns them with the policy",
        )
        self.prompter = Prompter(model, template, prompt_tokens) if self.backbone.reads_text else None
        if self.prompter and prompt_tokens is None:
            self.prompter.fit(instructions)
        self.prompt_tokens = self.prompter.token_count if self.prompter else 0
        self.identity: dict[str, Any] = {
            **self.backbone.identity,
            "cameras": list(image_sizes),
            "image_sizes": {camera: list(size) for camera, size in image_sizes.items()},
            "template": template if self.prompter else None,
            "prompt_tokens": self.prompt_tokens,
        }
        """Everything that determines these tokens, JSON-ready; see `identity_difference`."""
        self._prompts: dict[tuple[str | None, ...], Tensor] = {}

    @classmethod
    def recorded(cls, identity: Mapping[str, Any], model: str) -> "FrameTokens":
        """The encoder with this identity, with the model of a local folder or a hub name.

        Raises:
            ConfigError: it is another model, or an older version of robopolicy wrote the identity.
        """
        needed = ("image_sizes", "template", "prompt_tokens", "readout", "layer", "dtype", "processor", "weights")
        if missing := [name for name in needed if name not in identity]:
            raise ConfigError(
                f"the training tokens' record has no {missing[0]}: an older robopolicy encoded them; encode and train again"
            )
        made = cls(
            model,
            {camera: (size[0], size[1]) for camera, size in identity["image_sizes"].items()},
            identity["template"] or "{instruction}",
            identity["prompt_tokens"],
            reading=Reading(identity["readout"], identity["layer"], identity.get("words", 1), identity.get("tiles", 0)),
            dtype=identity["dtype"],
        )
        made.require(identity, model)
        return made

    def require(self, identity: Mapping[str, Any], name: str) -> None:
        """Refuse an identity that is not this encoder's.

        Raises:
            ConfigError: they differ; the message names the first difference.
        """
        if difference := identity_difference(self.identity, identity):
            raise ConfigError(f"{name} is not the backbone that made the training tokens: {difference}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D) of one frame."""
        return self.backbone.token_count(len(self.image_sizes), self.prompt_tokens), self.backbone.token_width

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return next(self.backbone.parameters()).device

    def prompts(self, instructions: Sequence[str | None]) -> Tensor | None:
        """Token ids (instructions, words) on the backbone's device; None for a backbone that reads no text."""
        if self.prompter is None:
            return None
        key = tuple(instructions)
        if key not in self._prompts:
            self._prompts = {key: self.prompter.prepare(key)}
        return self._prompts[key].to(self.device)

    @torch.no_grad()
    def forward(
        self, images: Mapping[str, Tensor], prompts: Tensor | None
    ) -> tuple[Float16[Tensor, "frames tokens width"], Bool[Tensor, "frames tokens"]]:
        """Tokens and their mask; padding repeats the last real token.

        Args:
            images: per camera uint8 (frames, height, width, 3).
            prompts: rows from `prompts`, one per frame or one for all.
        """
        cameras = [images[camera].to(self.device) for camera in self.image_sizes]
        frames = len(cameras[0])
        parts = []
        for start in range(0, frames, BATCH_FRAMES):
            batch = [camera[start : start + BATCH_FRAMES] for camera in cameras]
            rows = None
            if prompts is not None:
                rows = prompts.expand(frames, -1)[start : start + BATCH_FRAMES]
            parts.append(self.backbone(batch, rows))
        tokens, valid = (torch.cat(values) for values in zip(*parts, strict=True))
        last = torch.arange(valid.shape[1], device=valid.device).where(valid, -1).amax(dim=1)
        repeated = tokens[torch.arange(frames, device=tokens.device), last][:, None]
        return tokens.where(valid[..., None], repeated).half(), valid
