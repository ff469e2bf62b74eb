"""Vision-language backbones of the `transformers` package: images and a prompt in, hidden states out.

CLIP and SigLIP give patch tokens and text tokens in their shared space; PaliGemma, Qwen2.5-VL and SmolVLM the last hidden
states of images and prompt together. Images are prepared here, in torch and on the device, from the numbers in the
model's `preprocessor_config.json`, so that torchvision isn't needed and the gradient-free part is one graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv")
"""Names of the linear maps that LoRA adapts."""


class Backbone(nn.Module):
    """One loaded model; frozen, or with LoRA adapters as its only trainable weights.

    Args:
        model: the loaded `transformers` model.
        prepare: how its images are prepared.
        lora_rank: of the adapters on the attention's linear maps; 0 freezes everything.
    """

    token_width: int
    """D."""

    def __init__(self, model: nn.Module, prepare: "ImagePreparation", lora_rank: int = 0) -> None:
        super().__init__()
        self.prepare = prepare
        self.trained = lora_rank > 0
        model.requires_grad_(False)
        self.model: Any = _with_adapters(model, lora_rank) if self.trained else model

    def token_count(self, cameras: int, words: int) -> int:
        """N, for this number of cameras and prompt tokens."""
        raise NotImplementedError

    def forward(
        self, images: Sequence[UInt8[Tensor, "frames _ _ 3"]], prompt: Int[Tensor, "frames words"] | None
    ) -> tuple[Float[Tensor, "frames tokens width"], Bool[Tensor, "frames tokens"]]:
        """Tokens and their mask.

        Args:
            images: one batch of images for each camera.
            prompt: token numbers, -1 beyond the end; None for a policy without the instruction.
        """
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            pixels = torch.stack([self.prepare(image) for image in images], dim=1)
            tokens, valid = self.encode(pixels.to(self.model.dtype), prompt)
        return tokens.float(), valid

    def encode(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `forward`, on prepared images (frames, cameras, 3, height, width)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Backbone":
        """Adapters train; a frozen model stays in eval mode, so that its dropout is off."""
        return super().train(mode and self.trained)


class ImagePreparation(nn.Module):
    """uint8 images of any size, resized and standardized as the model was trained."""

    def __init__(self, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = (height, width)
        self.mean = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self, images: UInt8[Tensor, "frames height width 3"]
    ) -> Float[Tensor, "frames 3 resized_height resized_width"]:
        """Bicubic, antialiased, as the models' own processors do; the aspect ratio is not kept."""
        pixels = rearrange(images, "b h w c -> b c h w").to(self.mean.dtype) / 255
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = functional.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std


class ContrastiveBackbone(Backbone):
    """CLIP and SigLIP: patch tokens of every camera, then the prompt's tokens, in the space the two towers share."""

    def __init__(self, model: Any, prepare: ImagePreparation, lora_rank: int = 0) -> None:
        super().__init__(model, prepare, lora_rank)
        vision = model.config.vision_config
        self.patches = (vision.image_size // vision.patch_size) ** 2
        self.longest_prompt = model.config.text_config.max_position_embeddings
        self.projected = hasattr(model, "visual_projection")
        self.token_width = model.config.projection_dim if self.projected else vision.hidden_size
        if not self.projected and vision.hidden_size != model.config.text_config.hidden_size:
            raise ValueError(
                f"the towers are {vision.hidden_size} and {model.config.text_config.hidden_size} wide; expected one width"
            )

    def token_count(self, cameras: int, words: int) -> int:
        """See `Backbone`."""
        return cameras * self.patches + words

    def encode(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Backbone`."""
        frames = len(pixels)
        seen = self.model.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
        if self.projected:  # CLIP: a class token first; the final norm is only applied to that one by the tower itself
            seen = self.model.visual_projection(self.model.vision_model.post_layernorm(seen[:, 1:]))
        tokens = [seen.reshape(frames, -1, seen.shape[-1])]
        valid = [torch.ones(tokens[0].shape[:2], dtype=torch.bool, device=pixels.device)]
        if prompt is not None:
            kinds, place = torch.unique(prompt, dim=0, return_inverse=True)
            tokens.append(self._words(kinds)[place])
            valid.append(prompt >= 0)
        return torch.cat(tokens, dim=1), torch.cat(valid, dim=1)

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


class GenerativeBackbone(Backbone):
    """PaliGemma, Qwen2.5-VL, SmolVLM: the last hidden states over the images of all cameras and the prompt.

    Args:
        model, prepare, lora_rank: as for `Backbone`.
        around: token numbers that stand before and after each image.
    """

    def __init__(
        self,
        model: Any,
        prepare: ImagePreparation,
        lora_rank: int = 0,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ) -> None:
        super().__init__(model, prepare, lora_rank)
        self.family = model.config.model_type
        self.token_width = model.config.get_text_config().hidden_size
        before, after = around
        self.image_ids = [*before, *[model.config.image_token_id] * self._image_tokens(), *after]

    def token_count(self, cameras: int, words: int) -> int:
        """See `Backbone`."""
        return cameras * len(self.image_ids) + words

    def encode(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Backbone`."""
        frames, cameras = pixels.shape[:2]
        images = torch.tensor(self.image_ids * cameras, device=pixels.device).expand(frames, -1)
        words = prompt if prompt is not None else images[:, :0]
        ids = torch.cat([images, words], dim=1)
        valid = ids >= 0
        padding = self.model.config.get_text_config().pad_token_id or 0
        states = self.model(
            input_ids=ids.where(valid, padding),
            attention_mask=valid.long(),
            use_cache=False,
            **self._pixel_inputs(pixels),
            **({"token_type_ids": torch.zeros_like(ids)} if self.family == "paligemma" else {}),
        )
        return states.last_hidden_state, valid

    def _image_tokens(self) -> int:
        vision = self.model.config.vision_config
        rows, columns = (side // vision.patch_size for side in self.prepare.size)
        if self.family == "qwen2_5_vl":
            return rows * columns // vision.spatial_merge_size**2
        if self.family == "smolvlm":
            return rows * columns // self.model.config.scale_factor**2
        return rows * columns

    def _pixel_inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """The arguments with which the family's model takes its images."""
        if self.family == "smolvlm":
            return {"pixel_values": pixels.contiguous()}
        flat = pixels.flatten(0, 1)
        if self.family != "qwen2_5_vl":
            return {"pixel_values": flat}
        vision = self.model.config.vision_config
        rows, columns = (side // vision.patch_size for side in self.prepare.size)
        patches = rearrange(
            flat[:, None].expand(-1, vision.temporal_patch_size, -1, -1, -1),
            "b t c (gh mh ph) (gw mw pw) -> (b gh gw mh mw) (c t ph pw)",
            mh=vision.spatial_merge_size,
            mw=vision.spatial_merge_size,
            ph=vision.patch_size,
            pw=vision.patch_size,
        )
        grid = torch.tensor([[1, rows, columns]], device=pixels.device).expand(len(flat), -1)
        return {"pixel_values": patches, "image_grid_thw": grid}


def _with_adapters(model: nn.Module, rank: int) -> nn.Module:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft; pip install 'robopolicy[vlm]'") from error
    there = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(there & set(ATTENTION)))
    adapted = inject_adapter_in_model(config, model)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return adapted
