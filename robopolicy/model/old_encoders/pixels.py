"""Pictures: a small trainable network whose attention is steered by the instruction.

Per camera, a picture is cut into patches and one convolution over them gives a feature map. Queries made from the
sentence vector attend to its places; each gives the attended feature and the attended image position (a soft argmax).
Time and proprioception are learned first and vision late, so the encoder also contributes the term `where`: what the
target keys say of the named object, such as its position, told from what the eyes attend to and nothing else.
"""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.model.losses import TermInputs, joined_targets, masked_mean
from robopolicy.model.old_encoders.base import Encoding, TokenEncoder, append_text, perceptron, told
from robopolicy.model.text import TextTokens


class PixelsEncoder(TokenEncoder):
    """`queries` tokens per camera, one token for what they say together with proprioception, then the instruction's.

    Where `where` names target keys, a perceptron tells them from what is attended to, and the fused token sees its answer.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, int]],
        key_widths: Mapping[str, int],
        width: int,
        hidden: int,
        text_width: int | None,
        text_tokens: int,
        where: Mapping[str, int] | None = None,
        queries: int = 4,
    ) -> None:
        """Args: height and width per camera, then as for `KeysEncoder`; widths of the target keys; queries per camera."""
        super().__init__()
        if not cameras:
            raise ValueError("encoder pixels needs at least one camera; give --data.cameras")
        self.cameras, self.keys = tuple(cameras), tuple(key_widths)
        self.where_widths = dict(where or {})
        self.term_names: Sequence[str] = ("where",) if self.where_widths else ()
        self.token_width = width
        self.token_count = queries * len(cameras) + 1 + text_tokens
        self.eyes = nn.ModuleList(Eye(queries, text_width) for _ in cameras)
        self.seen = nn.Linear(Eye.CHANNELS + 2, width)
        attended = queries * len(cameras) * (Eye.CHANNELS + 2)
        self.where = perceptron(attended, hidden, sum(self.where_widths.values())) if self.where_widths else None
        fused = attended + sum(key_widths.values()) + sum(self.where_widths.values()) + (text_width or 0)
        self.fuse = perceptron(fused, hidden, width)

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`; predictions: `where`, the target keys side by side, normalized."""
        lead = obs[self.cameras[0]].shape[:-3]
        sentence = (
            None
            if text is None
            else text.sentence.expand(*lead, text.sentence.shape[-1]).reshape(-1, text.sentence.shape[-1])
        )
        seen = []
        for camera, eye in zip(self.cameras, self.eyes, strict=True):
            picture = obs[camera].reshape(-1, *obs[camera].shape[-3:])
            seen.append(eye(picture, sentence).unflatten(0, lead) if lead else eye(picture, sentence).squeeze(0))
        attended = torch.cat(seen, dim=-2)
        known = [attended.flatten(-2), *(obs[key] for key in self.keys)]
        predictions = {}
        if self.where is not None:
            predictions["where"] = self.where(known[0])
            known.append(predictions["where"])
        fused = self.fuse(told(torch.cat(known, dim=-1), text))
        tokens = torch.cat([self.seen(attended), fused[..., None, :]], dim=-2)
        return Encoding(*append_text(tokens, text), predictions)

    def terms(self, inputs: TermInputs) -> dict[str, Tensor]:
        """`where`: mean squared error of the target keys, normalized, over the real frames."""
        target = joined_targets(inputs, self.where_widths, "where")
        valid = inputs.batch.frame_valid[..., None]
        error = torch.where(valid, inputs.predictions["where"].float() - torch.where(valid, target, 0.0), 0.0).square()
        return {"where": masked_mean(error, valid)}


class Eye(nn.Module):
    """One camera: patches to a feature map, and queries from the sentence attending to it.

    The convolution sees each patch with its neighbours, so that an attended feature can tell where inside the patch the
    attended thing is. Patches make it several times cheaper than strided convolutions on pixels.
    """

    CHANNELS = 32
    PATCH_PX = 4

    def __init__(self, queries: int, text_width: int | None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3 * self.PATCH_PX**2, self.CHANNELS, kernel_size=3, padding=1)
        self.features = nn.Conv2d(self.CHANNELS, 2 * self.CHANNELS, kernel_size=1)
        self.query = perceptron(text_width, self.CHANNELS, queries * self.CHANNELS) if text_width else None
        self.free_query = nn.Parameter(torch.randn(queries, self.CHANNELS))

    def forward(
        self, picture: UInt8[Tensor, "frames height width 3"], sentence: Float[Tensor, "frames text"] | None
    ) -> Float[Tensor, "frames queries seen"]:
        """Attended features, then the attended position (x right, y down, each in [-1, 1])."""
        pad_down, pad_right = (-side % self.PATCH_PX for side in picture.shape[1:3])
        whole = functional.pad(picture, (0, 0, 0, pad_right, 0, pad_down))
        cut = rearrange(whole, "b (h p) (w q) c -> b (p q c) h w", p=self.PATCH_PX, q=self.PATCH_PX)
        scaled = cut.to(self.free_query.dtype) / 127.5 - 1
        features = self.features(functional.relu(self.patches(scaled)))
        keys, values = rearrange(features, "b (two c) h w -> two b (h w) c", two=2)
        queries = self.free_query.expand(picture.shape[0], -1, -1)
        if self.query is not None and sentence is not None:
            queries = queries + self.query(sentence).unflatten(-1, self.free_query.shape)
        attention = functional.softmax(queries @ keys.mT / self.CHANNELS**0.5, dim=-1)
        grid = _positions(*features.shape[-2:], like=values)
        return torch.cat([attention @ values, attention @ grid.expand(picture.shape[0], -1, -1)], dim=-1)


def _positions(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, 2) centres of the cells of a picture, x right and y down, each in [-1, 1]."""
    rows = (2 * torch.arange(height, device=like.device, dtype=like.dtype) + 1) / height - 1
    columns = (2 * torch.arange(width, device=like.device, dtype=like.dtype) + 1) / width - 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)
