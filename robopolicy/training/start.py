"""Starts a training run from the policy of an earlier one: its weights, and the statistics that they were trained with."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from robopolicy.components import ConfigError, require
from robopolicy.experiment.run_folder import read_policy, read_provenance
from robopolicy.files import write_file
from robopolicy.model.encoders._loading import identity_difference
from robopolicy.model.normalization import Normalizer
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import UNKNOWN, Vocabulary

LOG = logging.getLogger(__name__)
START_FILE = "start.json"
"""File in a run folder that records the start policy; a resumed run reads it."""
PARTS = ("encoder", "text", "pooling", "memory", "action_head")
"""Parts of a policy that can be frozen."""
EMBEDDING = "text.embedding.weight"
WORDS = frozenset((EMBEDDING, "text.position"))
"""Weights with a row per word or per position: new words, or longer instructions, add rows."""
BEYOND = 1.02
"""New actions that exceed the kept range by more than this factor are reported: the action head can't produce them."""


@dataclass(frozen=True)
class Start:
    """The run that a new training run starts from, and what is taken over from it."""

    folder: str
    """Run folder of the weights to start with."""
    statistics: Literal["keep", "refit"] = "keep"
    """keep: statistics of the start policy, with which its weights were trained; refit: statistics of the new demos."""
    freeze: tuple[str, ...] = ()
    """Parts whose weights are frozen."""

    def __post_init__(self) -> None:
        if unknown := [part for part in self.freeze if part not in PARTS]:
            raise ConfigError(f"--freeze {unknown[0]}: no such part; a policy has {', '.join(PARTS)}")

    def write(self, run_dir: Path) -> None:
        """Save these options in the run folder, so that `--resume` builds the same policy."""
        write_file(run_dir / START_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, run_dir: Path) -> "Start | None":
        """The contents of `start.json`; None for a run that began from random weights."""
        path = run_dir / START_FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text())
            return cls(values["folder"], values["statistics"], tuple(values["freeze"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: expected JSON with folder, statistics and freeze; delete the file and train again"
            ) from error


def open_start(start: Start, token_encoder: dict[str, Any] | None) -> ChunkPolicy:
    """The policy that a training run starts from, on the CPU.

    Args:
        start: the run to start from, and what is taken over from it.
        token_encoder: identity of the encoder of the new demos' tokens.

    Raises:
        CheckpointError: the folder can't be read.
        ConfigError: the start policy was trained on tokens of a different encoder.
    """
    policy, before = read_policy(start.folder), read_provenance(start.folder).get("token_encoder")
    if before and token_encoder and (difference := identity_difference(token_encoder, before)):
        raise ConfigError(
            f"--start {start.folder} was trained on tokens of another encoder; the new ones have {difference}"
        )
    return policy


def vocabulary_after(begun: ChunkPolicy, demos: Vocabulary | None, start: Start) -> Vocabulary | None:
    """The start policy's vocabulary, extended by the new words of the demos unless the text model is frozen."""
    if begun.vocabulary is None or demos is None or "text" in start.freeze:
        return begun.vocabulary
    extended = begun.vocabulary.extended(demos)
    new = extended.words[len(begun.vocabulary.words) :]
    if new and hasattr(begun.text, "vocabulary"):
        LOG.info("words     new in these demos, initialized as the unknown word: %s", ", ".join(new))
    return extended


def take_over(policy: ChunkPolicy, begun: ChunkPolicy, start: Start) -> None:
    """Copy the start policy's weights, and with `keep` its statistics, into a new policy; then freeze `start.freeze`.

    Raises:
        ConfigError: the policies differ in action columns or in names or shapes of weights, or all weights are frozen.
    """
    _require_same(policy, begun, start)
    earlier = begun.state_dict() if start.statistics == "keep" else dict(begun.named_parameters())
    own = policy.state_dict()
    with torch.no_grad():
        if start.statistics == "keep":
            for line in _differences(policy, begun):
                LOG.info("%s", line)
        for name, value in earlier.items():
            if name in WORDS:
                own[name][: len(value)] = value
                if name == EMBEDDING:  # so that the first loss equals the start policy's
                    own[name][len(value) :] = value[UNKNOWN]
            elif name in own:
                own[name].copy_(value)
    for part in start.freeze:
        if (module := getattr(policy if part in ("encoder", "text") else policy.head, part)) is not None:
            module.requires_grad_(False)
    require(
        any(parameter.requires_grad for parameter in policy.parameters()),
        f"--freeze {' '.join(start.freeze)} leaves nothing to train; name fewer parts",
    )


def _require_same(policy: ChunkPolicy, begun: ChunkPolicy, start: Start) -> None:
    columns = [
        (spec.arm, spec.gripper, spec.gripper_values, spec.kind) for spec in (policy.action_spec, begun.action_spec)
    ]
    require(
        start.statistics == "refit" or columns[0] == columns[1],
        f"--start {start.folder}: its action columns are {columns[1]}, those of the demos are {columns[0]} (arm, gripper, "
        "gripper values, kind); convert the demos, or give --statistics refit",
    )
    ours, theirs = ({name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (policy, begun))
    for name in WORDS.intersection(ours, theirs):
        if theirs[name][1:] == ours[name][1:]:
            theirs[name] = ours[name]
    names = {**theirs, **ours}
    if changed := [name for name in names if ours.get(name) != theirs.get(name)]:
        name = changed[0]
        raise ConfigError(
            f"--start {start.folder}: its weights differ from those of this config: {name} is "
            f"{theirs.get(name, 'missing')} there and {ours.get(name, 'missing')} here; start from a policy with the "
            "same encoder, memory and action head"
        )


def _differences(policy: ChunkPolicy, begun: ChunkPolicy) -> Iterator[str]:
    """Lines that compare the new demos' statistics, in `policy`, with those that are kept."""
    yield "kept      the start's statistics; those of the new demos differ from them as follows"
    for key in policy.scaling.keys:
        new, old = (cast(Normalizer, each.scaling.normalizer(key)) for each in (policy, begun))
        moved = ((new.offset - old.offset) / old.scale).abs()
        spread = (new.scale / old.scale).clamp(min=1e-6)
        place, wide = int(moved.argmax()), int(spread.log().abs().argmax())
        yield (
            f"          {key}: center moved by {float(moved[place]):.2g} of its scale (dimension {place}), scale times "
            f"{float(spread[wide]):.2g} (dimension {wide})"
        )
    (new_offset, new_scale), (offset, scale) = (each.action_normalizer._scaling for each in (policy, begun))
    reach = ((new_offset - offset).abs() + new_scale) / torch.where(scale == 0, 1.0, scale)
    if not len(reach):
        return
    place = int(reach.argmax())
    yield f"          actions: they reach {float(reach[place]):.3g} times the kept range (arm column {place})"
    if float(reach[place]) > BEYOND:
        LOG.warning(
            "the new demos' actions reach %.3g times the kept range in arm column %d, and the action head predicts at most 1; "
            "--statistics refit scales actions to the new range",
            float(reach[place]),
            place,
        )
