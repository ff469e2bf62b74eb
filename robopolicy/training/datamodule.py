"""Reads demo files for training: action spec, shapes, normalization statistics, and batches."""

import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import distributed

from robopolicy import __version__
from robopolicy.components import ConfigError, component_of, require
from robopolicy.demos.actions import describe_action_spec, gripper_openings, opening_ends
from robopolicy.demos.formats import DemoReader, open_demos
from robopolicy.demos.hdf5 import TOKENS_PADDED
from robopolicy.demos.provenance import WatchedFiles, fingerprint
from robopolicy.demos.rows import DemoRows, load_rows, row_types
from robopolicy.demos.store import DemoStore
from robopolicy.experiment.building import DemoFacts, action_normalizer
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.model.normalization import ActionNormalizer
from robopolicy.model.rotation_math import ACTIONS, RotationColumns, action_rotations, key_rotations
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import Vocabulary
from robopolicy.training.encode import require_one_encoder
from robopolicy.training.loader import BatchLoader, Carried, InOrder, Shuffled
from robopolicy.training.selection import (
    choose_action_spec,
    choose_keys,
    intervention_weights,
    pooling_ahead,
    split_names,
)
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ActionSpec, ArraySpec, Batch

LOG = logging.getLogger(__name__)


class DemoDataModule(LightningDataModule):
    """The demos of an experiment: split into training and held-out demos, statistics of the training demos, and batches.

    Args:
        config: the experiment.
        device: device of the batches, that of the model; default: this process's GPU if there is one, else the CPU.
        read_images: False if only `facts` is needed: the images are not read, and there are no batches.

    Raises (in `setup`):
        ConfigError: files, keys, filter keys or columns named in the config are missing or don't fit.
        DemoFormatError: a file can't be used.
    """

    action_spec: ActionSpec
    """The columns of the demos' action rows: from the config, the files, or the default rule."""
    obs: dict[str, ArraySpec]
    """Observation key of the policy -> shape and data type of one frame."""
    privileged: dict[str, ArraySpec]
    """Privileged key, used by auxiliary losses only -> shape and data type of one frame."""
    obs_statistics: dict[str, Statistics]
    """Statistics of each low-dimensional and privileged key, from the training split."""
    action_statistics: Statistics
    """Statistics of the action rows, from the training split."""
    instructions: tuple[str, ...]
    """Instructions of the training split."""

    def __init__(
        self, config: ExperimentConfig, device: torch.device | str | None = None, read_images: bool = True
    ) -> None:
        super().__init__()
        self._read_images = read_images
        self.experiment = config
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(own if device is None else device)
        self._readers: list[DemoReader] = []
        self._train: DemoRows | None = None
        self._valid: DemoRows | None = None
        self._stores: dict[str, DemoStore] = {}
        self._normalizer: ActionNormalizer | None = None
        self._token_encoder: dict[str, Any] | None = None
        self._rotations: dict[str, tuple[RotationColumns, ...]] = {}
        self._row_weights: np.ndarray | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the files and read what stays in memory; a second call does nothing."""
        if self._train is not None:
            return
        data = self.experiment.data
        require(data.files, "no demos to train on; give --data.files FILE ...")
        self._readers = [open_demos(path) for path in data.files]
        self._files = WatchedFiles(reader.path for reader in self._readers)
        if self.experiment.reads_tokens:
            self._token_encoder = require_one_encoder(self._readers)
        chosen, held_out = zip(*(split_names(reader, data) for reader in self._readers), strict=True)
        first = (self._readers[0], chosen[0][0])
        keys, privileged = choose_keys(*first, data, self._token_encoder is not None)
        if TOKENS_KEY in keys and any(reader.attributes.get(TOKENS_PADDED) for reader in self._readers):
            keys.append(TOKEN_VALID_KEY)
        requested = tuple(dict.fromkeys((*keys, *privileged)))
        types = row_types(*first)
        images = [] if self._read_images else [key for key in requested if key in types and len(types[key][0]) == 3]
        read = [key for key in requested if key not in images]
        self._train = train = self._load(chosen, read)
        self._row_weights = intervention_weights(self._readers, chosen, data)
        self._valid = self._load(held_out, read) if any(held_out) else None
        self.action_spec = choose_action_spec(self._readers, train, data)
        specs = {key: train.spec(key) for key in read}
        # `train` holds fewer tokens than the file if they were pooled ahead of time; the spec is that of the file.
        in_file = (*images, *({TOKENS_KEY} & specs.keys()))
        specs |= {key: ArraySpec(types[key][0], types[key][1].name) for key in in_file}
        self.obs, self.privileged = ({key: specs[key] for key in part} for part in (keys, privileged))
        self._take_statistics(train)
        self.instructions = train.instructions
        LOG.info("%s", self.summary())

    @property
    def frames(self) -> int:
        """Frames of the training split."""
        return self._rows().steps

    @property
    def segment(self) -> int:
        """Frames of each segment of a training batch."""
        return self._store("train").segment

    def use_normalizer(self, normalizer: ActionNormalizer) -> None:
        """Normalize action targets with this normalizer instead of one made from these demos' statistics."""
        self._normalizer, self._stores = normalizer.to(self.device), {}

    def train_dataloader(self) -> BatchLoader:
        """Shuffled segments, or whole demos in episode streams for `--memory.history carry`."""
        data, seed = self.experiment.data, self.experiment.training.seed
        rank, processes = _process()
        require(
            data.batch_size % processes == 0,
            f"--data.batch_size {data.batch_size} can't be shared by {processes} processes; use a multiple",
        )
        store = self._store("train")
        if self.experiment.history == "carry":
            order = Carried(store.rows, data.batch_size, store.segment, data.frame_stride, seed)
        else:
            order = Shuffled(
                store.rows, data.batch_size, seed, data.file_weights, data.first_step_share, self._row_weights
            )
        return BatchLoader(store, order, rank, processes, self._files.require_unchanged)

    def val_dataloader(self) -> BatchLoader | list[Batch]:
        """The held-out segments in order, the same each time; empty if no demo is held out."""
        if self._valid is None:
            return []
        store, size = self._store("valid"), self.experiment.data.batch_size
        rank, processes = _process()
        if self.experiment.history == "carry":
            streams = min(size, -(-len(store.rows.lengths) // processes) * processes)
            order = Carried(store.rows, streams, store.segment, self.experiment.data.frame_stride)
        else:
            order = InOrder(store.rows, size)
        return BatchLoader(store, order, rank, processes)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The unchanged batch: the store has gathered it on the model's device."""
        return batch

    def teardown(self, stage: str | None = None) -> None:
        """Close the files; Lightning calls it after training."""
        for reader in self._readers:
            reader.close()

    def summary(self) -> str:
        """The training data in a few lines, for the start of the log."""
        train, valid, spec = self._rows(), self._valid, self.action_spec
        held_out = f"{len(valid.lengths)} demos, {valid.steps} steps held out" if valid else "none held out"
        where = {"device": f"in the memory of {self.device}", "host": "in host memory", "disk": "read from the disk"}
        wide = f"; {' and '.join(train.large)} {where[train.placement]}" if train.large else ""
        if TOKENS_KEY in train.large and (kept := train.large[TOKENS_KEY].shape) != self.obs[TOKENS_KEY].shape:
            wide += (
                f"; tokens pooled ahead of time ({component_of(self.experiment.pooling).kind}), {kept[0]} kept a frame"
            )
        sizes = [f"{key} {'x'.join(map(str, spec.shape))}" for key, spec in self.obs.items()]
        lines = [
            f"demos     {len(train.lengths)} demos, {train.steps} steps; {held_out}{wide}",
            f"inputs    {', '.join(sizes)}",
            f"language  {self._language()}",
            f"actions   {describe_action_spec(spec)}",
        ]
        if turned := [f"{key} ({part.kind})" for key, parts in self._rotations.items() for part in parts]:
            lines.append(f"rotations {', '.join(turned)}, learned {self.experiment.normalization.rotation}")
        if self.privileged:
            lines.insert(2, f"losses    may use {', '.join(self.privileged)}, which the policy does not see")
        return "\n".join(lines)

    def _language(self) -> str:
        if not self.instructions:
            return "no instruction"
        more = f" and {len(self.instructions) - 3} more" if len(self.instructions) > 3 else ""
        shown = ", ".join(f"'{instruction}'" for instruction in self.instructions[:3]) + more
        if without := int((self._rows().instruction_id < 0).sum()):
            shown += f"; {without} demos without an instruction"
        return f"{shown}, not used (--text.kind none)" if component_of(self.experiment.text).kind == "none" else shown

    @property
    def facts(self) -> DemoFacts:
        """The facts about these demos that a policy is built from."""
        return DemoFacts(
            action=self.action_spec,
            observation=self.obs,
            vocabulary=Vocabulary.of(self.instructions) if self.instructions else None,
            obs_statistics=self.obs_statistics,
            action_statistics=self.action_statistics,
            provenance=self.provenance,
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the policy's folder: files, seeds, task, control_dt, renderer, encoder, versions."""
        about = self._readers[0].attributes
        env_name = str((about.get("env_args") or {}).get("env_name", ""))
        task = self.experiment.task or (env_name.removeprefix("robopolicy/") if "robopolicy/" in env_name else None)
        rate_hz = self.action_spec.rate_hz
        return {
            "files": [{"name": reader.path.name, **fingerprint(reader.path)} for reader in self._readers],
            "demo_seeds": sorted({*self._rows().seeds, *(self._valid.seeds if self._valid else ())}),
            "train_demos": len(self._rows().lengths),
            "valid_demos": len(self._valid.lengths) if self._valid else 0,
            "task": task,
            "control_dt": None if rate_hz is None else 1 / rate_hz,
            "renderer": about.get("renderer"),
            "gripper_opens": self._gripper_opens(),
            "token_encoder": self._token_encoder,
            "versions": {"robopolicy": __version__, **{name: version(name) for name in ("torch", "numpy", "h5py")}},
        }

    def _gripper_opens(self) -> str | list[str | None] | None:
        """Which of a gripper's two values opens it, if the observed openings show it; a list if there are several grippers."""
        rows = self._rows()
        openings, ends = gripper_openings(rows.low_dim), rows.offsets[1:-1]
        if openings is None:
            return None
        opens = opening_ends(np.split(rows.actions, ends), self.action_spec, np.split(openings, ends))
        return opens[0] if len(opens) == 1 else list(opens) if any(opens) else None

    def _load(self, names: Sequence[Sequence[str]], keys: Sequence[str]) -> DemoRows:
        data = self.experiment.data
        threads = data.num_workers or min(4, os.cpu_count() or 1)
        sources = list(zip(self._readers, names, strict=True))
        pool = pooling_ahead(self.experiment.encoder, self.experiment.pooling)
        return load_rows(sources, keys, placement=data.placement, device=self.device, threads=threads, pool_tokens=pool)

    def _take_statistics(self, train: DemoRows) -> None:
        """Find the rotations in keys and actions, align them, and compute the statistics of the training split."""
        scaling = self.experiment.normalization
        form, declared = scaling.rotation, scaling.rotations
        if unknown := [name for name in declared if name.partition("[")[0] not in (*train.low_dim, ACTIONS)]:
            known = ", ".join((*train.low_dim, ACTIONS))
            raise ConfigError(f"--normalization.rotations {unknown[0]!r}: no such key; there are {known}")
        self._rotations = {key: key_rotations(key, rows[0].size, form, declared) for key, rows in train.low_dim.items()}
        self.obs_statistics = {
            key: Statistics.of(rows, self._rotations[key], form, f"obs/{key}") for key, rows in train.low_dim.items()
        }
        self._rotations[ACTIONS] = action_rotations(self.action_spec, form, declared)
        self.action_statistics = Statistics.of(train.actions, self._rotations[ACTIONS], form, ACTIONS)

    def _rows(self) -> DemoRows:
        if self._train is None:
            raise RuntimeError("the demos are not read yet; call setup() first")
        return self._train

    def _store(self, split: str) -> DemoStore:
        """The split's store, made once."""
        if split not in self._stores:
            rows = self._valid if split == "valid" and self._valid is not None else self._rows()
            normalizer = self._normalizer or action_normalizer(
                self.experiment.normalization, self.action_spec, self.action_statistics
            )
            self._stores[split] = DemoStore(
                rows,
                segment=self._segment(rows),
                chunk=self.experiment.action_head.chunk,
                stride=self.experiment.data.frame_stride,
                action_transform=normalizer.to_target,
                device=self.device,
            )
        return self._stores[split]

    def _segment(self, rows: DemoRows) -> int:
        """Frames of a segment: `data.segment`; if not given, the longest demo for a carried memory, otherwise one window."""
        longest = -(-int(rows.lengths.max()) // self.experiment.data.frame_stride)
        default = longest if self.experiment.history == "carry" else self.experiment.window
        return self.experiment.data.segment or default


def _process() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    if distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
