"""A vision-language backbone as encoder: pictures and instruction -> its hidden states, and one token for proprioception."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from robopolicy.config import EncoderConfig
from robopolicy.model.encoders._backbones import Backbone
from robopolicy.model.encoders._loading import load_backbone, load_tokenizer
from robopolicy.model.old_encoders.base import Encoding, TokenEncoder, append_text, perceptron
from robopolicy.model.text import TextTokens
from robopolicy.types import ArraySpec

LOG = logging.getLogger(__name__)
PROMPT_TOKENS = 32
"""Tokens of an instruction that are read; the rest is cut off, and reported."""


class PromptText(nn.Module):
    """The instruction as the backbone's own token numbers: what `ChunkPolicy.text` is for this encoder.

    Its `TextTokens.tokens` are the numbers themselves, int64 (*B, words, 1), -1 beyond the end: the backbone embeds them.
    """

    def __init__(self, model: str, template: str) -> None:
        """Args: folder or name of the backbone; how an instruction is put to it, with `{instruction}` in it."""
        super().__init__()
        if "{instruction}" not in template:
            raise ValueError(
                f"--encoder.template {template!r} has no place for the instruction; write {{instruction}} in it"
            )
        self.template = template
        self.tokenizer = load_tokenizer(model)
        self.token_count = PROMPT_TOKENS

    def prepare(self, instructions: Sequence[str | None]) -> Int[Tensor, "instructions words"]:
        """Token numbers, -1 beyond the end; a prompt without instruction is the template around nothing."""
        ids = torch.full((len(instructions), PROMPT_TOKENS), -1, dtype=torch.int64)
        for row, instruction in enumerate(instructions):
            numbers = self.tokenizer(self.template.replace("{instruction}", instruction or ""))["input_ids"]
            if len(numbers) > PROMPT_TOKENS:
                LOG.warning("prompt of %d tokens cut off after %d: %r", len(numbers), PROMPT_TOKENS, instruction)
            ids[row, : len(numbers)] = torch.tensor(numbers[:PROMPT_TOKENS], dtype=torch.int64)
        return ids

    def forward(self, prepared: Int[Tensor, "*batch words"]) -> TextTokens:
        """The numbers, which of them are real, and no sentence vector."""
        return TextTokens(
            prepared[..., None], prepared >= 0, torch.zeros((*prepared.shape[:-1], 0), device=prepared.device)
        )


class TransformersEncoder(TokenEncoder):
    """The backbone's tokens through a learned linear map to our width, then one token for proprioception.

    A frozen backbone is no part of the policy's saved weights, and one with LoRA saves its adapters only: the model is
    found again under its name when the policy is loaded.
    """

    def __init__(
        self,
        backbone: Backbone,
        cameras: Sequence[str],
        key_widths: Mapping[str, int],
        width: int,
        hidden: int,
        text_tokens: int,
    ) -> None:
        """Args: the model; camera keys; d of each low-dimensional key; D; hidden width; instruction tokens (0: untold)."""
        super().__init__()
        if not cameras:
            raise ValueError("encoder transformers needs at least one camera; give --data.cameras")
        self.backbone = backbone
        self.cameras, self.keys = tuple(cameras), tuple(key_widths)
        self.token_width = width
        self.token_count = backbone.token_count(len(cameras), text_tokens) + bool(key_widths)
        self.project = nn.Linear(backbone.token_width, width)
        self.proprio = perceptron(sum(key_widths.values()), hidden, width) if key_widths else None
        self._register_state_dict_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_keep_frozen)

    @classmethod
    def from_config(
        cls, config: EncoderConfig, obs: Mapping[str, ArraySpec], text_tokens: int
    ) -> "TransformersEncoder":
        """The encoder of an experiment; `text_tokens` is its text's `token_count`, or 0 for a policy that is told nothing."""
        if config.model is None:
            raise ValueError("encoder transformers needs a model; give --encoder.model FOLDER_OR_NAME")
        cameras = {key: spec.shape[:2] for key, spec in obs.items() if spec.is_image}
        if not cameras:
            raise ValueError("encoder transformers needs at least one camera; give --data.cameras")
        widths = {key: spec.width for key, spec in obs.items() if not spec.is_image}
        height, width = next(iter(cameras.values()))
        backbone = load_backbone(config.model, (height, width), config.lora_rank)
        return cls(backbone, tuple(cameras), widths, config.width, config.hidden, text_tokens)

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`. Words of a `PromptText` are put to the backbone; learned ones are appended to its tokens."""
        lead = obs[self.cameras[0]].shape[:-3]
        images = [obs[camera].reshape(-1, *obs[camera].shape[-3:]) for camera in self.cameras]
        prompted = text is not None and not text.tokens.is_floating_point()
        prompt = None
        if text is not None and prompted:
            words = text.tokens[..., 0]
            prompt = words.expand(*lead, words.shape[-1]).reshape(-1, words.shape[-1])
        tokens, valid = self.backbone(images, prompt)
        tokens = self.project(tokens).reshape(*lead, -1, self.token_width)
        valid = valid.reshape(*lead, -1)
        if self.proprio is not None:
            known = self.proprio(torch.cat([obs[key] for key in self.keys], dim=-1))[..., None, :]
            tokens = torch.cat([tokens, known], dim=-2)
            valid = torch.cat([valid, torch.ones_like(valid[..., :1])], dim=-1)
        if text is not None and not prompted:
            tokens, _ = append_text(tokens, text)
            valid = torch.cat([valid, text.valid.expand(*lead, text.valid.shape[-1])], dim=-1)
        return Encoding(tokens, valid, predictions={})


def _drop_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Leave the backbone's own weights out of a state dict; adapters stay."""
    for name in [name for name in state if _is_frozen(name, prefix)]:
        del state[name]


def _keep_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state dict without the backbone's own weights load: they are those that it has."""
    own = cast(TransformersEncoder, module).backbone.state_dict(prefix=f"{prefix}backbone.")
    state.update({name: value for name, value in own.items() if _is_frozen(name, prefix)})


def _is_frozen(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}backbone.") and "lora_" not in name
