"""The normalizers of several observation keys, as one module."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from robopolicy.model.normalization import Kind, Normalizer
from robopolicy.model.rotations import RotationForm, RotationKind, key_rotations
from robopolicy.model.statistics import Statistics
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ArraySpec


class KeyScaling(nn.Module):
    """Scales every low-dimensional key by its own statistics; images and tokens pass unchanged.

    Args:
        specs: shape and type of one frame of each key.
        statistics: of each low-dimensional key, from the training split; None when weights are loaded afterwards.
        kind: `min-max`, `mean-std`, `quantile` or `none`.
        form: form in which rotations are learned.
        declared: columns that are rotations, by key.

    Raises:
        ValueError: statistics of a key are missing.
    """

    def __init__(
        self,
        specs: Mapping[str, ArraySpec],
        statistics: Mapping[str, Statistics] | None,
        kind: Kind = "mean-std",
        form: RotationForm = "aligned",
        declared: Mapping[str, RotationKind] | None = None,
    ) -> None:
        super().__init__()
        self.specs = dict(specs)
        scaled = {k: s for k, s in specs.items() if not s.is_image and k not in (TOKENS_KEY, TOKEN_VALID_KEY)}
        if statistics is not None and (missing := [key for key in scaled if key not in statistics]):
            raise ValueError(f"no statistics of {missing[0]!r}; there are those of: {', '.join(statistics)}")
        self.keys = tuple(scaled)
        # A list, since keys may hold characters (such as dots) that a module's name may not.
        self.normalizers = nn.ModuleList(
            Normalizer(
                spec.width,
                kind,
                None if statistics is None else statistics[key],
                key_rotations(key, spec.width, form, declared or {}),
                form,
            )
            for key, spec in scaled.items()
        )

    def normalizer(self, key: str) -> Normalizer | None:
        """The scaling of one key; None for images and tokens."""
        return cast(Normalizer, self.normalizers[self.keys.index(key)]) if key in self.keys else None

    @property
    def scaled_specs(self) -> dict[str, ArraySpec]:
        """The same keys with the shapes that scaling gives them."""
        widths = {key: cast(Normalizer, part).width for key, part in zip(self.keys, self.normalizers, strict=True)}
        return {key: ArraySpec((widths[key],)) if key in widths else spec for key, spec in self.specs.items()}

    @property
    def units(self) -> dict[str, Tensor]:
        """Key -> what a step of 1 of each scaled column is before scaling."""
        return {key: cast(Normalizer, part).scale for key, part in zip(self.keys, self.normalizers, strict=True)}

    def forward(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each of the given keys (*B, ...) scaled to (*B, width); keys may be missing."""
        scaled = dict(obs)
        for key, normalizer in zip(self.keys, self.normalizers, strict=True):
            if key in obs:
                spec, value = self.specs[key], obs[key]
                flat = value.reshape(*value.shape[: value.dim() - len(spec.shape)], spec.width)
                scaled[key] = cast(Normalizer, normalizer).normalize(flat)
        return scaled
