"""Backbones that read images and prompt as one sequence: PaliGemma, Qwen2-VL and later, SmolVLM, Idefics3, LLaVA, ..."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from robopolicy.components import ConfigError
from robopolicy.model.encoders._backbones import Backbone, Reading
from robopolicy.model.encoders._images import ImagePreparation
from robopolicy.model.texts.prompt import ACTION, END, FIRST_CAMERA, IMAGES

FLOAT16_EXACT = 2048
"""Largest integer up to which float16 is exact; tokens are stored in float16."""
WORD_COLUMNS = 2
"""D with the readout `words`: the word's position in the vocabulary, and a 0, because the memory `none` halves the width."""


class GenerativeBackbone(Backbone):
    """The hidden states of the images of all cameras and the prompt, or the words generated after it.

    Args:
        model, images, reading: as for `Backbone`; with the readout words, a model with its output layer.
        around: token ids before and after each image.
    """

    def __init__(
        self,
        model: Any,
        images: ImagePreparation,
        reading: Reading,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ) -> None:
        super().__init__(model, images, reading)
        config = model.config
        self.family = config.model_type
        self.token_width = config.get_text_config().hidden_size
        vision = config.vision_config
        self.gridded = hasattr(vision, "spatial_merge_size") and hasattr(vision, "temporal_patch_size")
        """Qwen2-VL and later take images as patches, with the size of their grid."""
        self.several = hasattr(config, "scale_factor") and self.family in ("smolvlm", "idefics3")
        """SmolVLM and Idefics3 take images with an additional axis for the images of a frame."""
        if self.several:  # under autocast its image features would have another type than the words' embeddings
            model.connector.register_forward_hook(lambda part, _, output: output.to(next(part.parameters()).dtype))
        image_token = getattr(config, "image_token_id", None) or config.image_token_index
        self.image_ids = [*around[0], *[image_token] * self._image_tokens(), *around[1]]
        self.words_end = 0
        """Id of the first word after those that represent actions; set by `load_backbone`."""
        if reading.readout == "words":
            self.token_width = WORD_COLUMNS
            model.generation_config = type(model.generation_config)(pad_token_id=0)  # greedy, without an end token
        self.action_tokens: nn.Parameter | None = None
        """(count, D) vectors that the readout action_token inserts into the prompt in place of word embeddings."""
        if reading.readout == "action_token":
            self.action_tokens = nn.Parameter(torch.zeros(reading.action_tokens, self.token_width))

    def read_action_tokens(self, path: Path) -> None:
        """Load the vectors of the readout action_token from a file in the backbone's folder.

        Raises:
            ConfigError: the file holds something else.
        """
        found = load_file(path).get("action_tokens")
        if found is None or found.dim() != 2 or found.shape[1] != self.token_width:
            shape = "missing" if found is None else tuple(found.shape)
            raise ConfigError(f"{path}: action_tokens is {shape}; expected (count, {self.token_width})")
        self.reading = replace(self.reading, action_tokens=len(found))
        self.action_tokens = nn.Parameter(found.float(), requires_grad=False)

    def state_count(self, images: int, words: int) -> int:
        """See `Backbone`."""
        return images * len(self.image_ids) + words + self._actions

    def hidden_states(self, pixels: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Backbone`; with the readout action_token, the states of its vectors alone."""
        if self.reading.readout == "words":
            assert prompt is not None
            return self._generated(pixels, prompt)
        frames, images = pixels.shape[:2]
        rows, place = torch.zeros((1, 0), dtype=torch.int64), torch.zeros(frames, dtype=torch.int64)
        if prompt is not None:
            rows, place = torch.unique(prompt, dim=0, return_inverse=True)
        length = self.state_count(images, rows.shape[1])
        ids = torch.tensor([self._row(row, images, length) for row in rows.tolist()])[place.cpu()].to(pixels.device)
        valid, actions = ids != END, ids == ACTION
        with self._embedded(actions):
            outputs = self.model(
                input_ids=ids.where(ids >= 0, self.model.config.get_text_config().pad_token_id or 0),
                attention_mask=valid.long(),
                use_cache=False,
                **self._pixel_inputs(pixels),
                **({"token_type_ids": torch.zeros_like(ids)} if self.family == "paligemma" else {}),
                output_hidden_states=self.reading.layer != -1,
            )
        states = self._layer_of(outputs)
        if self.action_tokens is None:
            return states, valid
        return states[actions].reshape(frames, self._actions, -1), valid[actions].reshape(frames, self._actions)

    def _generated(self, pixels: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """The words that the model generates greedily for each frame, as (frames, words, 2): position and 0.

        A position is counted backwards from the word before `words_end`. Later words, which RoboVLMs doesn't use, have -1.
        """
        count, images = self.reading.action_tokens, pixels.shape[1]
        places = pixels.new_zeros((len(pixels), count, 2), dtype=torch.float32)
        rows, place = torch.unique(prompt, dim=0, return_inverse=True)
        for number, row in enumerate(rows.tolist()):  # one prompt at a time: padding would shift the words' positions
            mine = place == number
            ids = torch.tensor(self._row(row, images, 0), device=pixels.device).expand(int(mine.sum()), -1)
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                **self._pixel_inputs(pixels[mine]),
                **({"token_type_ids": torch.zeros_like(ids)} if self.family == "paligemma" else {}),
            )
            places[mine, :, 0] = (self.words_end - 1 - generated[:, -count:]).clamp(-1, FLOAT16_EXACT).float()
        return places, torch.ones(places.shape[:2], dtype=torch.bool, device=places.device)

    @property
    def _actions(self) -> int:
        return 0 if self.action_tokens is None else len(self.action_tokens)

    @contextmanager
    def _embedded(self, actions: Tensor) -> Iterator[None]:
        """Within the context, the learned vectors replace the embeddings where `actions` (frames, states) is True."""
        if self.action_tokens is None:
            yield
            return
        vectors = self.action_tokens

        def put(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            return embedded.masked_scatter(actions[..., None], vectors.to(embedded.dtype).repeat(len(embedded), 1))

        hook = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()

    def _row(self, prompt: Sequence[int], images: int, length: int) -> list[int]:
        """Token ids of a whole input: images and action tokens are inserted at their markers, or at the beginning and the end.

        Raises:
            ConfigError: the template names the images of single cameras, but not each once and in the cameras' order.
        """
        numbers = [number for number in prompt if number != END]
        placed, cameras = [FIRST_CAMERA - number for number in numbers if number <= FIRST_CAMERA], images // self.views
        if placed and placed != [*range(cameras)]:
            raise ConfigError(
                f"the template places the images of cameras {', '.join(str(place + 1) for place in placed)}; expected "
                f"{' '.join(f'{{image_{place + 1}}}' for place in range(cameras))} in this order, or {{images}}"
            )
        if IMAGES not in numbers and not placed:
            numbers.insert(0, IMAGES)
        if ACTION not in numbers and self._actions:
            numbers.append(ACTION)
        row: list[int] = []
        for number in numbers:
            if number == IMAGES or number <= FIRST_CAMERA:
                row += self.image_ids * (images if number == IMAGES else self.views)
            else:
                row += [ACTION] * self._actions if number == ACTION else [number]
        return row + [END] * (length - len(row))

    def _image_tokens(self) -> int:
        """Number of tokens of one image in the prompt."""
        config = self.model.config
        if self.gridded or self.several or self.family == "paligemma":
            rows, columns = (side // config.vision_config.patch_size for side in self.images.size)
            merged = config.vision_config.spatial_merge_size**2 if self.gridded else 1
            return rows * columns // (config.scale_factor**2 if self.several else merged)
        blank = torch.zeros(1, 1, 3, *self.images.size, dtype=self.model.dtype)
        with torch.no_grad():
            found = self.model.get_image_features(**self._pixel_inputs(blank))
        found = getattr(found, "pooler_output", found)
        return sum(len(part.flatten(0, -2)) for part in (found if isinstance(found, list | tuple) else [found]))

    def _pixel_inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """The images in the form that the family's model takes."""
        if self.several:
            return {"pixel_values": pixels.contiguous()}
        flat = pixels.flatten(0, 1)
        if not self.gridded:
            return {"pixel_values": flat}
        vision = self.model.config.vision_config
        rows, columns = (side // vision.patch_size for side in self.images.size)
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
