"""What a policy needs to be told and what it answers: a server's metadata, and part of an export's manifest.

Imports no torch, and nothing of the network.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from robopolicy.types import ActionSpec, ArraySpec

PUBLIC_PROVENANCE = ("task", "control_dt", "renderer", "versions")
ANNOUNCED = ("chunk", "window", "history", "frame_stride", "control_dt", "execution", "provenance")
"""Fields of a spec that a server's metadata carries under their own names."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy's inputs, outputs and rates."""

    observation: Mapping[str, ArraySpec]
    """Per key the policy looks at."""
    action: ActionSpec
    """Columns of the answer."""
    chunk: int
    """K, actions per answer."""
    window: int
    """W, frames of memory."""
    history: str = "window"
    """window, carry or none."""
    instruction: bool = False
    """Whether it looks at an instruction."""
    frame_stride: int = 1
    """Control steps between two frames in training."""
    control_dt: float | None = None
    """Seconds between two actions, where known."""
    execution: Mapping[str, Any] = field(default_factory=dict)
    """How its chunks are meant to be executed: the fields of `robopolicy.config.ExecutionConfig`, where known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Task, versions and the like, as the policy's folder tells them; only what is fit for a stranger's eyes."""

    @classmethod
    def of(cls, policy: Any, provenance: Mapping[str, Any]) -> "PolicySpec":
        """The spec of a `ChunkPolicy`; of its provenance only what is fit for strangers: no path, no seed."""
        rate_hz = policy.action_spec.rate_hz
        return cls(
            observation={
                key: wanted if wanted.is_image else ArraySpec(wanted.shape) for key, wanted in policy.obs.items()
            },
            action=policy.action_spec,
            chunk=policy.chunk,
            window=policy.window,
            history=policy.config.head.history,
            instruction=policy.text is not None,
            frame_stride=policy.config.data.frame_stride,
            control_dt=provenance.get("control_dt") or (1.0 / rate_hz if rate_hz else None),
            execution=asdict(policy.config.execution),
            provenance={key: provenance[key] for key in PUBLIC_PROVENANCE if key in provenance},
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` reads it back."""
        return {
            "observation": {key: {"shape": list(f.shape), "dtype": f.dtype} for key, f in self.observation.items()},
            "action": self.action.to_dict(),
            "chunk": self.chunk,
            "window": self.window,
            "history": self.history,
            "instruction": self.instruction,
            "frame_stride": self.frame_stride,
            "control_dt": self.control_dt,
            "execution": dict(self.execution),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PolicySpec":
        """The inverse of `to_dict`."""
        fields = {key: ArraySpec(tuple(f["shape"]), f["dtype"]) for key, f in values["observation"].items()}
        return cls(**{**values, "observation": fields, "action": ActionSpec.from_dict(values["action"])})
