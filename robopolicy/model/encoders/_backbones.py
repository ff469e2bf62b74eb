"""Backbones of the `transformers` package: images and a prompt in, hidden states out.

Contrastive models (CLIP, SigLIP, SigLIP 2) give patch tokens and text tokens in their shared space; generative ones
(PaliGemma, Qwen2-VL and later, SmolVLM, Idefics3, and any other that takes `pixel_values` beside image tokens in its
text) the hidden states of images and prompt together; vision models (DINOv2, ViT, ...) their patch tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import ConfigError
from robopolicy.model.encoders._images import ImagePreparation


@dataclass(frozen=True)
class Reading:
    """Which of a backbone's hidden states become tokens."""

    readout: Literal["all", "last", "mean", "action_token", "words"] = "all"
    """all: every token of images and prompt; last: the last real token; mean: the mean over the real tokens; action_token:
    learned vectors that stand in the prompt like words; words: places in the vocabulary of the words that the language model
    writes after the prompt, as RoboVLMs' discrete decoder does."""
    layer: int = -1
    """Which hidden states: -1 the last, after the final norm; 0 the embeddings, n those after layer n; negative counts
    from the end."""
    action_tokens: int = 1
    """Number of words, or of vectors of the readout action_token if the backbone's folder holds none; else not used."""
    tiles: int = 0
    """n: after each camera's image come its n x n tiles, row by row, so that small things are seen in more pixels."""


class Backbone(nn.Module):
    """One loaded model, frozen unless adapters are added to it or `finetune` is called.

    Args:
        model: the loaded `transformers` model.
        images: how its images are prepared.
        reading: which of its hidden states become tokens.
    """

    token_width: int
    """D."""
    reads_text: bool = True
    """Whether it reads a prompt."""

    def __init__(self, model: nn.Module, images: ImagePreparation, reading: Reading) -> None:
        super().__init__()
        self.images, self.reading = images, reading
        self.trained: tuple[str, ...] = ()
        """Parts of the names of weights that are trained; empty text stands for all, nothing for a frozen model."""
        self.model: Any = model.requires_grad_(False)
        self.identity: dict[str, Any] = {}
        """Which model it is and how it is read, JSON-ready; set by `load_backbone`."""
        self.random: tuple[str, ...] = ()
        """Names of weights that its folder doesn't hold; set by `load_backbone`."""

    def token_count(self, cameras: int, words: int) -> int:
        """N, for this number of cameras and a prompt of this number of tokens."""
        counts = {"all": self.state_count(cameras * self.views, words), "last": 1, "mean": 1}
        return counts.get(self.reading.readout, self.reading.action_tokens)

    @property
    def views(self) -> int:
        """Images of one camera in a frame."""
        return 1 + self.reading.tiles**2

    def state_count(self, images: int, words: int) -> int:
        """Hidden states of one frame with this number of images."""
        raise NotImplementedError

    def forward(
        self, images: Sequence[UInt8[Tensor, "frames _ _ 3"]], prompt: Int[Tensor, "frames words"] | None
    ) -> tuple[Float[Tensor, "frames tokens width"], Bool[Tensor, "frames tokens"]]:
        """Tokens and their mask.

        Args:
            images: one batch of images for each camera.
            prompt: token numbers, -1 beyond the end; None without a prompt.
        """
        trained = any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            seen = [self.images(view) for image in images for view in views_of(image, self.reading.tiles)]
            pixels = torch.stack(seen, dim=1)
            states, valid = self.hidden_states(pixels.to(self.model.dtype), prompt)
            return read_out(states.float(), valid, self.reading.readout)

    def hidden_states(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """All hidden states (frames, states, D) and their mask, of prepared images (frames, images, 3, height, width)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of a model that is trained; a frozen one stays in eval mode, so that its dropout is off."""
        return super().train(mode and bool(self.trained))

    def unfreeze(self, *names: str) -> None:
        """Train the model's weights whose names hold one of these texts, and no others."""
        self.trained = names
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in names))
        self.train()  # the trainer keeps each module's mode; dropout and checkpointing are off in eval mode

    def _layer_of(self, outputs: Any) -> Tensor:
        layer = self.reading.layer
        if layer == -1:
            return outputs.last_hidden_state
        states = outputs.hidden_states
        if not -len(states) <= layer < len(states):
            raise ConfigError(
                f"layer {layer} of a backbone with {len(states) - 1} layers; expected 0 .. {len(states) - 1}"
            )
        return states[layer]


class ContrastiveBackbone(Backbone):
    """CLIP and SigLIP: patch tokens of every camera, then the prompt's tokens, in the space the two towers share."""

    def __init__(self, model: Any, images: ImagePreparation, reading: Reading) -> None:
        super().__init__(model, images, reading)
        if reading.layer != -1:
            raise ConfigError(
                f"layer {reading.layer} of a {model.config.model_type}; expected -1: its towers share only the last"
            )
        if reading.readout in ("action_token", "words"):
            raise ConfigError(
                f"readout {reading.readout} of a {model.config.model_type}, which reads images and prompt apart; expected all, "
                "last or mean"
            )
        vision = model.config.vision_config
        self.patch_size = vision.patch_size
        self.grid = tuple(side // vision.patch_size for side in images.size)
        self.longest_prompt = model.config.text_config.max_position_embeddings
        self.projected = hasattr(model, "visual_projection")
        self.patched = model.config.model_type == "siglip2"
        """Whether images go in as flat patches."""
        self.token_width = model.config.projection_dim if self.projected else vision.hidden_size
        if not self.projected and vision.hidden_size != model.config.text_config.hidden_size:
            raise ConfigError(
                f"the towers of this {model.config.model_type} are {vision.hidden_size} and "
                f"{model.config.text_config.hidden_size} wide; expected one width"
            )

    def state_count(self, images: int, words: int) -> int:
        """See `Backbone`."""
        return images * self.grid[0] * self.grid[1] + words

    def hidden_states(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Backbone`."""
        frames = len(pixels)
        seen = self.model.vision_model(**self._pixel_inputs(pixels.flatten(0, 1))).last_hidden_state
        if self.projected:  # CLIP: a class token first; the final norm is only applied to that one by the tower itself
            seen = self.model.visual_projection(self.model.vision_model.post_layernorm(seen[:, 1:]))
        tokens = [seen.reshape(frames, -1, seen.shape[-1])]
        valid = [torch.ones(tokens[0].shape[:2], dtype=torch.bool, device=pixels.device)]
        if prompt is not None:
            kinds, place = torch.unique(prompt, dim=0, return_inverse=True)
            tokens.append(self._words(kinds)[place])
            valid.append(prompt >= 0)
        return torch.cat(tokens, dim=1), torch.cat(valid, dim=1)

    def _pixel_inputs(self, pixels: Tensor) -> dict[str, Tensor | None]:
        if not self.patched:
            return {"pixel_values": pixels}
        side = self.patch_size
        patches = rearrange(pixels, "b c (gh ph) (gw pw) -> b (gh gw) (ph pw c)", ph=side, pw=side)
        shapes = torch.tensor([self.grid], device=pixels.device).expand(len(pixels), -1)
        return {"pixel_values": patches, "attention_mask": None, "spatial_shapes": shapes}

    def _words(self, prompt: Tensor) -> Tensor:
        text = self.model.config.text_config
        padding = text.pad_token_id if text.pad_token_id is not None else text.eos_token_id
        padded = functional.pad(prompt, (0, self.longest_prompt - prompt.shape[1]), value=-1)
        mask = (padded >= 0).long() if self.projected else None  # SigLIP was trained to read its padding
        words = self.model.text_model(
            input_ids=padded.where(padded >= 0, padding), attention_mask=mask
        ).last_hidden_state
        words = words[:, : prompt.shape[1]]
        return self.model.text_projection(words) if self.projected else words


class VisionBackbone(Backbone):
    """DINOv2, ViT or any other model of images alone: the patch tokens of every camera, without class and register tokens."""

    reads_text = False

    def __init__(self, model: Any, images: ImagePreparation, reading: Reading) -> None:
        super().__init__(model, images, reading)
        if reading.readout in ("last", "action_token", "words"):
            raise ConfigError(
                f"readout {reading.readout} of a {model.config.model_type}, which reads no text; expected all or mean"
            )
        side = getattr(model.config, "patch_size", None)
        patches = None if side is None else (images.size[0] // side) * (images.size[1] // side)
        with torch.no_grad():
            states = self._states(torch.zeros(1, 3, *images.size, dtype=model.dtype))
        self.prefix = 0 if patches is None or patches > states.shape[1] else states.shape[1] - patches
        self.patches, self.token_width = states.shape[1] - self.prefix, states.shape[2]

    def state_count(self, images: int, words: int) -> int:
        """See `Backbone`."""
        return images * self.patches

    def hidden_states(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Backbone`."""
        states = self._states(pixels.flatten(0, 1))[:, self.prefix :]
        states = states.reshape(len(pixels), -1, states.shape[-1])
        return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)

    def _states(self, pixels: Tensor) -> Tensor:
        """(images, states, D); the cells of a convolutional model's map (images, D, rows, columns) are its states."""
        states = self._layer_of(self.model(pixel_values=pixels, output_hidden_states=self.reading.layer != -1))
        return rearrange(states, "b d h w -> b (h w) d") if states.dim() == 4 else states


def views_of(image: UInt8[Tensor, "frames height width 3"], tiles: int) -> list[Tensor]:
    """The images themselves, then their tiles x tiles parts (frames, height / tiles, width / tiles, 3), row by row."""
    height, width = (side // max(tiles, 1) for side in image.shape[1:3])
    corners = [(row * height, column * width) for row in range(tiles) for column in range(tiles)]
    return [image, *(image[:, top : top + height, left : left + width] for top, left in corners)]


def read_out(states: Tensor, valid: Tensor, readout: str) -> tuple[Tensor, Tensor]:
    """Hidden states (frames, states, D) and their mask -> tokens and theirs."""
    if readout not in ("last", "mean"):
        return states, valid
    if readout == "mean":
        weight = valid[..., None].to(states.dtype)
        read = (states * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
    else:
        places = torch.arange(valid.shape[1], device=valid.device).where(valid, -1).amax(dim=1)
        read = states[torch.arange(len(states), device=states.device), places][:, None]
    return read, torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
