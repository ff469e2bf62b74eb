"""The config of a robopolicy policy in LeRobot: an experiment of robopolicy, and what its policy knows of the data."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robopolicy.components import ConfigError
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.experiment.reading import config_from_dict, merged
from robopolicy.training.module import Schedule


@PreTrainedConfig.register_subclass("robopolicy")
@dataclass
class RobopolicyConfig(PreTrainedConfig):
    """Options of `--policy.type=robopolicy`; what a checkpoint's `config.json` holds."""

    experiment_file: str | None = None
    """A YAML file as `robopolicy train --config` reads it; its `data.files` and `training` are LeRobot's to decide."""
    experiment: dict[str, Any] = field(default_factory=dict)
    """Changes to it at dotted paths, such as {"memory.window": 16, "action_head.chunk": 10}; in a checkpoint, all of it."""
    description: dict[str, Any] = field(default_factory=dict)
    """What the policy knows of its demos, as in a run folder's `policy.json`; filled when the policy is made."""
    privileged: dict[str, Any] = field(default_factory=dict)
    """Shape of each key that only losses use; filled likewise."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Observation key of robopolicy -> [LeRobot's feature, first column, column behind the last]; filled likewise."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("STATE", "VISUAL", "ACTION", "ENV"), NormalizationMode.IDENTITY)
    )
    """Identity: the policy normalizes by itself."""

    @cached_property
    def settings(self) -> ExperimentConfig:
        """The experiment, checked.

        Raises:
            ConfigError: an option is unknown or contradicts another.
        """
        values: dict[str, Any] = {}
        if self.experiment_file is not None:
            with open(self.experiment_file) as file:
                values = yaml.safe_load(file) or {}
        source = self.experiment_file or "--policy.experiment"
        # A checkpoint never causes an import; a new policy's plug-ins are the user's to name.
        return config_from_dict(merged(values, self.experiment), source, import_plugins=not self.description)

    @property
    def frames(self) -> range:
        """Control steps, from the window's first, at which the policy reads an observation."""
        settings = self.settings
        if settings.history == "carry":
            raise ConfigError(
                "--memory.history carry trains on whole demos in order, and LeRobot draws frames at random; "
                "train this policy with `robopolicy train`, and convert the run folder"
            )
        return range(0, settings.window * settings.data.frame_stride, settings.data.frame_stride)

    @property
    def observation_delta_indices(self) -> list[int]:
        """A window begins at the sampled frame: frames 0 .. W-1 from there."""
        return list(self.frames)

    @property
    def action_delta_indices(self) -> list[int]:
        """The K actions from each of the frames on."""
        return list(range(self.frames[-1] + self.settings.action_head.chunk))

    @property
    def reward_delta_indices(self) -> None:
        """No reward is used."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW as the experiment's section `optimizer` says; the groups' own rates come with the parameters."""
        own = self.settings.optimizer
        return AdamWConfig(
            lr=own.lr, betas=tuple(own.betas), weight_decay=own.weight_decay, grad_clip_norm=own.clip_norm
        )

    def get_scheduler_preset(self) -> "RobopolicySchedulerConfig":
        """Linear warm-up, then a cosine, over LeRobot's `--steps`."""
        own = self.settings.optimizer
        return RobopolicySchedulerConfig(num_warmup_steps=own.warmup_steps, min_lr_scale=own.min_lr_scale)

    def validate_features(self) -> None:
        """Nothing: which keys are used is the experiment's to say, and checked when the policy is made."""


@LRSchedulerConfig.register_subclass("robopolicy")
@dataclass
class RobopolicySchedulerConfig(LRSchedulerConfig):
    """robopolicy's schedule: the peak rate of each parameter group, times warm-up and cosine."""

    num_warmup_steps: int | None = 100
    """Steps of linear warm-up."""
    min_lr_scale: float = 0.01
    """The cosine ends at this share of the peak."""

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """The schedule; a group with `freeze_steps` begins later."""
        schedule = Schedule(num_training_steps, self.num_warmup_steps or 0, self.min_lr_scale)

        def scale_after(first: int) -> Any:
            def scale(step: int) -> float:
                return schedule.lr_scale(step, schedule.progress(step)) if step >= first else 0.0

            return scale

        return LambdaLR(optimizer, [scale_after(group.get("freeze_steps", 0)) for group in optimizer.param_groups])
