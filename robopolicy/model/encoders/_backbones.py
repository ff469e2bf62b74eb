"""Backbones from the `transformers` package: they map images and a prompt to hidden states.

Contrastive models (CLIP, SigLIP, SigLIP 2) return patch tokens and text tokens in their shared embedding space. Generative
models (PaliGemma, Qwen2-VL and later, SmolVLM, Idefics3, and any other that takes `pixel_values` and has image tokens in
its prompt) return the hidden states of images and prompt together. Vision models (DINOv2, ViT, ...) return patch tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, require
from robopolicy.model.encoders._images import ImagePreparation


@dataclass(frozen=True)
class Reading(Options):
    """Which of a backbone's hidden states become tokens."""

    readout: Literal["all", "last", "mean", "action_token", "words"] = "all"
    """all: every token of images and prompt; last: the last token that is not padding; mean: the mean over the tokens that are
    not padding; action_token: the states of learned vectors inserted into the prompt; words: token ids that the language
    model generates after the prompt, as RoboVLMs' discrete decoder does."""
    layer: int = -1
    """Layer of the hidden states: -1 the last, after the final norm; 0 the embeddings; n the output of layer n; other
    negative numbers count from the end."""
    action_tokens: int = option(1, ">= 1")
    """Number of generated tokens (readout words) or of learned vectors (readout action_token, unless the backbone's folder
    holds them); not used by other readouts."""
    tiles: int = option(0, ">= 0")
    """n > 0: the n x n tiles of each camera's image are read too, so that small objects get more pixels; 0: none."""


class Backbone(nn.Module):
    """One loaded model, frozen unless adapters are added to it or `finetune` is called.

    Args:
        model: the loaded `transformers` model.
        images: how its images are prepared.
        reading: which of its hidden states become tokens.
    """

    token_width: int
    """D, width of a token."""
    reads_text: bool = True
    """Whether it reads a prompt."""

    def __init__(self, model: nn.Module, images: ImagePreparation, reading: Reading) -> None:
        super().__init__()
        self.images, self.reading = images, reading
        self.trained: tuple[str, ...] = ()
        """Substrings of the names of trained weights; `("",)` matches all weights, `()` means a frozen model."""
        self.model: Any = model.requires_grad_(False)
        self.identity: dict[str, Any] = {}
        """JSON-ready description of the model and its readout; set by `load_backbone`."""
        self.random: tuple[str, ...] = ()
        """Names of weights missing in the model's folder, hence randomly initialized; set by `load_backbone`."""

    def token_count(self, cameras: int, words: int) -> int:
        """N, tokens per frame, for `cameras` cameras and a prompt of `words` tokens."""
        counts = {"all": self.state_count(cameras * self.views, words), "last": 1, "mean": 1}
        return counts.get(self.reading.readout, self.reading.action_tokens)

    @property
    def views(self) -> int:
        """Images per camera and frame: the whole image and its tiles."""
        return 1 + self.reading.tiles**2

    def state_count(self, images: int, words: int) -> int:
        """Number of hidden states of one frame with `images` images and a prompt of `words` tokens."""
        raise NotImplementedError

    def forward(
        self, images: Sequence[UInt8[Tensor, "frames _ _ 3"]], prompt: Int[Tensor, "frames words"] | None
    ) -> tuple[Float[Tensor, "frames tokens width"], Bool[Tensor, "frames tokens"]]:
        """Tokens and their mask (True: not padding).

        Args:
            images: one batch of images per camera.
            prompt: token ids, padded with -1; None without a prompt.
        """
        # No gradients for a frozen model, which saves the memory of its activations.
        trained = any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            seen = [self.images(view) for image in images for view in views_of(image, self.reading.tiles)]
            pixels = torch.stack(seen, dim=1)
            states, valid = self.hidden_states(pixels.to(self.model.dtype), prompt)
            return read_out(states.float(), valid, self.reading.readout)

    def hidden_states(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """All hidden states (frames, states, D) and their mask, from prepared images (frames, images, 3, height, width)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Backbone":
        """As `nn.Module.train`, except that a frozen model stays in eval mode, so that its dropout is off."""
        return super().train(mode and bool(self.trained))

    def unfreeze(self, *names: str) -> None:
        """Train only the weights whose names contain one of these substrings."""
        self.trained = names
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in names))
        self.train()  # the trainer doesn't switch modes; in eval mode, dropout and gradient checkpointing would stay off

    def _layer_of(self, outputs: Any) -> Tensor:
        """Hidden states of the layer `reading.layer`."""
        layer = self.reading.layer
        if layer == -1:
            return outputs.last_hidden_state
        states = outputs.hidden_states
        require(
            -len(states) <= layer < len(states),
            f"layer {layer} of a backbone with {len(states) - 1} layers; expected 0 .. {len(states) - 1}",
        )
        return states[layer]


class ContrastiveBackbone(Backbone):
    """CLIP and SigLIP: patch tokens of every camera, then the prompt's tokens, in the towers' shared embedding space."""

    def __init__(self, model: Any, images: ImagePreparation, reading: Reading) -> None:
        super().__init__(model, images, reading)
        require(
            reading.layer == -1,
            f"layer {reading.layer} of a {model.config.model_type}; expected -1: its towers share only the last",
        )
        require(
            reading.readout not in ("action_token", "words"),
            f"readout {reading.readout} of a {model.config.model_type}, which reads images and prompt separately; expected "
            "all, last or mean",
        )
        vision = model.config.vision_config
        self.patch_size = vision.patch_size
        self.grid = tuple(side // vision.patch_size for side in images.size)
        self.longest_prompt = model.config.text_config.max_position_embeddings
        self.projected = hasattr(model, "visual_projection")
        self.patched = model.config.model_type == "siglip2"
        """Whether the model takes images as flattened patches instead of (3, height, width)."""
        self.token_width = model.config.projection_dim if self.projected else vision.hidden_size
        require(
            self.projected or vision.hidden_size == model.config.text_config.hidden_size,
            f"the towers of this {model.config.model_type} are {vision.hidden_size} and "
            f"{model.config.text_config.hidden_size} wide; expected one width",
        )

    def state_count(self, images: int, words: int) -> int:
        """See `Backbone`."""
        return images * self.grid[0] * self.grid[1] + words

    def hidden_states(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Backbone`."""
        frames = len(pixels)
        seen = self.model.vision_model(**self._pixel_inputs(pixels.flatten(0, 1))).last_hidden_state
        if self.projected:  # CLIP: drop the class token; the tower applies its final norm only to that token
            seen = self.model.visual_projection(self.model.vision_model.post_layernorm(seen[:, 1:]))
        tokens = [seen.reshape(frames, -1, seen.shape[-1])]
        valid = [torch.ones(tokens[0].shape[:2], dtype=torch.bool, device=pixels.device)]
        if prompt is not None:
            # Frames of a batch mostly have the same few prompts; encode each distinct prompt once.
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
        mask = (padded >= 0).long() if self.projected else None  # SigLIP was trained with attention to padding
        words = self.model.text_model(
            input_ids=padded.where(padded >= 0, padding), attention_mask=mask
        ).last_hidden_state
        words = words[:, : prompt.shape[1]]
        return self.model.text_projection(words) if self.projected else words


class VisionBackbone(Backbone):
    """DINOv2, ViT or another image-only model: the patch tokens of every camera, without class and register tokens."""

    reads_text = False

    def __init__(self, model: Any, images: ImagePreparation, reading: Reading) -> None:
        super().__init__(model, images, reading)
        require(
            reading.readout not in ("last", "action_token", "words"),
            f"readout {reading.readout} of a {model.config.model_type}, which reads no text; expected all or mean",
        )
        # A trial image shows how many class and register tokens come before the patch tokens.
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
        """(images, states, D); for a convolutional model, the cells of its feature map (images, D, rows, columns)."""
        states = self._layer_of(self.model(pixel_values=pixels, output_hidden_states=self.reading.layer != -1))
        return rearrange(states, "b d h w -> b (h w) d") if states.dim() == 4 else states


def views_of(image: UInt8[Tensor, "frames height width 3"], tiles: int) -> list[Tensor]:
    """The whole images, then their tiles x tiles tiles (frames, height / tiles, width / tiles, 3), row by row."""
    height, width = (side // max(tiles, 1) for side in image.shape[1:3])
    corners = [(row * height, column * width) for row in range(tiles) for column in range(tiles)]
    return [image, *(image[:, top : top + height, left : left + width] for top, left in corners)]


def read_out(states: Tensor, valid: Tensor, readout: str) -> tuple[Tensor, Tensor]:
    """Hidden states (frames, states, D) and their mask -> tokens (frames, tokens, D) and their mask."""
    if readout not in ("last", "mean"):
        return states, valid
    if readout == "mean":
        weight = valid[..., None].to(states.dtype)
        read = (states * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
    else:
        places = torch.arange(valid.shape[1], device=valid.device).where(valid, -1).amax(dim=1)
        read = states[torch.arange(len(states), device=states.device), places][:, None]
    return read, torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
