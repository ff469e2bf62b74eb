"""Trains one network for several robots: each group of demo files has its own action spec, normalizers and action head.

Each group has a `ChunkPolicy`; all of them share encoder, text model, pooling and memory. A step takes one batch of every
group, and its loss is the weighted mean of the groups' losses.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from robopolicy.components import ConfigError, require
from robopolicy.experiment.building import build_policy
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.experiment.run_folder import GROUPS, save_policy
from robopolicy.model.encoders._loading import identity_difference
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.loader import BatchLoader
from robopolicy.training.objective import Objective
from robopolicy.types import Batch


def group_configs(config: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """Group -> the config for training on its files and columns alone."""
    configs = {}
    for name, group in config.data.groups.items():
        columns = {"arm": group.arm, "gripper": group.gripper}
        configs[name] = replace(config, data=replace(config.data, files=group.files, groups={}, **columns))
    return configs


class GroupLoader:
    """Yields one batch of every group at a time.

    An epoch has as many batches as the largest group; the loaders of smaller groups start over.

    Args:
        loaders: group -> its loader.
    """

    def __init__(self, loaders: Mapping[str, BatchLoader]) -> None:
        self.loaders = dict(loaders)
        self._position = 0

    @property
    def waited_s(self) -> float:
        """Time spent waiting for batches so far [s]."""
        return sum(loader.waited_s for loader in self.loaders.values())

    def __len__(self) -> int:
        """Batches of an epoch."""
        return max(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        streams = {name: chain.from_iterable(repeat(loader)) for name, loader in self.loaders.items()}
        if self._position >= len(self):
            self._position = 0
        while self._position < len(self):
            self._position += 1
            yield {name: next(stream) for name, stream in streams.items()}
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch, and the state of each group's loader."""
        return {"position": self._position, **{name: loader.state_dict() for name, loader in self.loaders.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from that position."""
        self._position = state_dict["position"]
        for name, loader in self.loaders.items():
            loader.load_state_dict(state_dict[name])


class GroupData(LightningDataModule):
    """The demos of every group, each with its own statistics.

    Args:
        config: the experiment, with `data.groups`.

    Raises (in `setup`):
        ConfigError: the groups differ in the keys or their shapes, or have tokens of different encoders.
        DemoFormatError: a file can't be used.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.groups = {name: DemoDataModule(each) for name, each in group_configs(config).items()}

    def setup(self, stage: str | None = None) -> None:
        """Open the files."""
        (first, *_), (one, *others) = self.groups, self.groups.values()
        for data in self.groups.values():
            data.setup(stage)
        for name, other in zip([*self.groups][1:], others, strict=True):
            for key in {**one.obs, **other.obs}:
                found = [str(data.obs[key].shape) if key in data.obs else "missing" for data in (one, other)]
                require(
                    found[0] == found[1],
                    f"--data.groups: {key} is {found[0]} in {first} and {found[1]} in {name}; groups share the encoder, "
                    "so choose keys that all have, with --data.obs_keys and --data.cameras",
                )
            encoders = [data.provenance["token_encoder"] or {} for data in (other, one)]
            if difference := identity_difference(*encoders):
                raise ConfigError(
                    f"--data.groups: tokens of {name} and {first} are of different encoders: {difference}"
                )

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance of each group."""
        return {name: data.provenance for name, data in self.groups.items()}

    def train_dataloader(self) -> GroupLoader:
        """Batches of all groups side by side."""
        return GroupLoader({name: data.train_dataloader() for name, data in self.groups.items()})

    def val_dataloader(self) -> list[tuple[str, Any]]:
        """(group, held-out batches) of each group with held-out demos."""
        loaders = {name: data.val_dataloader() for name, data in self.groups.items()}
        return [(name, loader) for name, loader in loaders.items() if len(loader)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The unchanged batches."""
        return batch

    def teardown(self, stage: str | None = None) -> None:
        """Close the files."""
        for data in self.groups.values():
            data.teardown(stage)


class GroupPolicies(nn.Module):
    """A policy for each group; they share everything except normalizers and action heads.

    Args:
        policies: group -> its policy; encoder, text model, pooling and memory of the first replace those of the others.
    """

    def __init__(self, policies: Mapping[str, ChunkPolicy]) -> None:
        super().__init__()
        first, *others = policies.values()
        for policy in others:
            policy.encoder, policy.text = first.encoder, first.text
            policy.head.pooling, policy.head.memory = first.head.pooling, first.head.memory
        self.members = nn.ModuleDict(policies)

    @classmethod
    def build(cls, data: GroupData) -> "GroupPolicies":
        """Untrained policies for these demos; each vocabulary covers the instructions of all groups."""
        texts = tuple(dict.fromkeys(text for each in data.groups.values() for text in each.instructions))
        vocabulary = Vocabulary.of(texts) if texts else None
        policies = {}
        for name, each in data.groups.items():
            policies[name] = build_policy(each.experiment, replace(each.facts, vocabulary=vocabulary))
        return cls(policies)

    def save(self, run_dir: Path, provenance: Mapping[str, Any]) -> None:
        """Write each policy as its own run folder, `run_dir/groups/<name>`."""
        for name, policy in self.members.items():
            save_policy(cast(ChunkPolicy, policy), run_dir / GROUPS / name, provenance[name])


class GroupObjective(nn.Module):
    """The weighted mean of the groups' losses; see `Objective`. A batch is a dictionary with one batch per group.

    Args:
        objectives: group -> its objective.
        weights: group -> weight of its loss.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.objectives: Any = nn.ModuleDict(objectives)
        self.weights = dict(weights)

    def forward(
        self, policies: GroupPolicies, batches: Mapping[str, Batch], state: None = None
    ) -> tuple[dict[str, Tensor], None]:
        """`loss`, and `loss_<group>` of each group; groups carry no memory from batch to batch."""
        losses = {name: self.objectives[name](policies.members[name], own)[0]["loss"] for name, own in batches.items()}
        return self._mean(losses), None

    def count(self, batches: Mapping[str, Batch]) -> Tensor:
        """Valid actions of all groups."""
        return torch.stack([self.objectives[name].count(own) for name, own in batches.items()]).sum()

    def measure(self, policies: GroupPolicies, batches: Iterable[tuple[str, Iterable[Batch]]]) -> dict[str, float]:
        """Means of `loss` and `loss_<group>` over the batches of each group; empty if there are no batches."""
        losses = {name: self.objectives[name].measure(policies.members[name], own)["loss"] for name, own in batches}
        return self._mean(losses) if losses else {}

    def _mean(self, losses: Mapping[str, Any]) -> dict[str, Any]:
        total = sum(self.weights[name] for name in losses)
        loss = sum(self.weights[name] / total * loss for name, loss in losses.items())
        return {"loss": loss, **{f"loss_{name}": loss for name, loss in losses.items()}}
