"""The part of LeRobot's interfaces (0.4.4 and 0.6.1) that the plug-in uses, for machines without LeRobot."""

import json
import sys
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn


class FeatureType(StrEnum):
    """Kinds of features."""

    STATE, VISUAL, ENV, ACTION = "STATE", "VISUAL", "ENV", "ACTION"


class NormalizationMode(StrEnum):
    """How LeRobot would scale a feature."""

    IDENTITY = "IDENTITY"


@dataclass
class PolicyFeature:
    """Kind and shape of a feature."""

    type: FeatureType
    shape: tuple[int, ...]


class Registry:
    """draccus' registry of choices."""

    @classmethod
    def register_subclass(cls, name: str) -> Any:
        """Decorator: known as `name`."""

        def add(made: Any) -> Any:
            made.type = name
            return made

        return add


@dataclass
class PreTrainedConfig(Registry):
    """Config of a policy."""

    n_obs_steps: int = 1
    input_features: dict[str, PolicyFeature] = field(default_factory=dict)
    output_features: dict[str, PolicyFeature] = field(default_factory=dict)
    device: str | None = None
    push_to_hub: bool = True

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / "config.json").write_text(json.dumps({"type": self.type, **asdict(self)}))


class PreTrainedPolicy(nn.Module):
    """Base of the policies."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: Path) -> None:
        """Write config and weights."""
        folder.mkdir(parents=True)
        self._save_pretrained(folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.config._save_pretrained(save_directory)
        save_model(self, str(save_directory / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> "PreTrainedPolicy":
        """Read config and weights."""
        values = json.loads((folder / "config.json").read_text())
        values.pop("type")
        for name in ("input_features", "output_features"):
            values[name] = {key: PolicyFeature(FeatureType(f["type"]), f["shape"]) for key, f in values[name].items()}
        policy = cls(cls.config_class(**values), **options)  # type: ignore[attr-defined]
        load_model(policy, str(folder / "model.safetensors"), strict=False)
        return policy.eval()


@dataclass
class AdamWConfig:
    """Settings of AdamW."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    grad_clip_norm: float = 10.0


@dataclass
class LRSchedulerConfig(Registry):
    """Settings of a schedule."""

    num_warmup_steps: int | None


class Step:
    """A step of a pipeline that keeps what it is given."""

    def __init__(self, **options: Any) -> None:
        self.options = options


class Pipeline:
    """Steps under a name."""

    def __init__(self, steps: list[Step], name: str, **options: Any) -> None:
        self.steps, self.name = steps, name

    def __class_getitem__(cls, types: Any) -> type["Pipeline"]:
        return cls

    def save_pretrained(self, folder: Path) -> None:
        """Write the steps' names."""
        (folder / f"{self.name}.json").write_text(json.dumps([type(step).__name__ for step in self.steps]))


MODULES: dict[str, dict[str, Any]] = {
    "lerobot": {},
    "lerobot.configs": {},
    "lerobot.configs.policies": {"PreTrainedConfig": PreTrainedConfig},
    "lerobot.configs.types": {
        "FeatureType": FeatureType,
        "NormalizationMode": NormalizationMode,
        "PolicyFeature": PolicyFeature,
    },
    "lerobot.optim": {},
    "lerobot.optim.optimizers": {"AdamWConfig": AdamWConfig},
    "lerobot.optim.schedulers": {"LRSchedulerConfig": LRSchedulerConfig},
    "lerobot.policies": {},
    "lerobot.policies.pretrained": {"PreTrainedPolicy": PreTrainedPolicy},
    "lerobot.processor": {
        **dict.fromkeys(
            (
                "AddBatchDimensionProcessorStep",
                "DeviceProcessorStep",
                "NormalizerProcessorStep",
                "RenameObservationsProcessorStep",
                "UnnormalizerProcessorStep",
            ),
            Step,
        ),
        "PolicyAction": Any,
        "PolicyProcessorPipeline": Pipeline,
    },
    "lerobot.processor.converters": {"policy_action_to_transition": None, "transition_to_policy_action": None},
    "lerobot.utils": {},
    "lerobot.utils.constants": {
        "POLICY_POSTPROCESSOR_DEFAULT_NAME": "policy_postprocessor",
        "POLICY_PREPROCESSOR_DEFAULT_NAME": "policy_preprocessor",
    },
}


def install() -> None:
    """Make the stand-ins importable as `lerobot`."""
    for name, contents in MODULES.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
