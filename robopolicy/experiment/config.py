"""The config tree of one experiment: plain sections as dataclasses, component sections as the chosen kind's options."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

from robopolicy.components import Options, component, component_of, option, require
from robopolicy.control.execution import DEFAULT_KIND
from robopolicy.model.streaming import History

Normalization: TypeAlias = Literal["min-max", "mean-std", "quantile", "none"]

COMPONENT_SECTIONS: Mapping[str, str | None] = {
    "encoder": "keys",
    "text": None,
    "pooling": "max",
    "memory": "lstm",
    "action_head": "regression",
    "execution": DEFAULT_KIND,
}
"""Sections whose fields depend on their `kind`, and the default kind; the default text is the encoder's."""

DEFAULT_LOSSES: Mapping[str, float] = {"arm": 1.0, "gripper": 0.01}
"""Losses of a config that names none; losses given on the command line are added to these."""


@dataclass(frozen=True)
class GroupConfig(Options):
    """The demos of one robot, of several that are trained together."""

    section: ClassVar[str] = "data.groups"

    files: tuple[str, ...] = ()
    """Its demo files."""
    weight: float = option(1.0, "> 0")
    """Weight of its loss; the weights are divided by their sum."""
    arm: tuple[int, ...] | None = None
    """As `data.arm`, for its files."""
    gripper: tuple[int, ...] | None = None
    """As `data.gripper`, for its files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.files, "--data.groups: a group without files; give each `files`")


@dataclass(frozen=True)
class DataConfig(Options):
    """Which demonstrations, which of their keys, and how batches are drawn from them."""

    section: ClassVar[str] = "data"

    files: tuple[str, ...] = ()
    """Demo files in the robomimic layout, or any format that `robopolicy check` opens."""
    groups: Mapping[str, GroupConfig] = field(default_factory=dict)
    """Instead of `files`: robots that are trained together, such as {panda: {files: [a.hdf5]}, ur5: {files: [b.hdf5]}}. Each
    has its own action spec, normalizers and action head; encoder and memory are shared."""
    file_weights: tuple[float, ...] = option((), "> 0")
    """Relative sampling weight of each file; empty: by its number of steps. Not for a carried memory."""
    train_demos: int | None = option(None, ">= 1")
    """Use only the first N training demos of each file; null: all."""
    train_filter: str = "train"
    """Filter key (`mask/<name>`) of the training demos, where the file has it."""
    valid_filter: str = "valid"
    """Filter key (`mask/<name>`) of the validation demos, where the file has it."""
    valid_fraction: float = option(0.1, ">= 0 and < 1")
    """Share of demos held out for validation where the file has no masks."""
    obs_keys: tuple[str, ...] | None = None
    """Low-dimensional observation keys of the policy; null: every 1-D key."""
    cameras: tuple[str, ...] | None = ()
    """Image observation keys of the policy; null: every camera of the demos."""
    privileged_keys: tuple[str, ...] = ()
    """Keys that auxiliary losses may use in training and that are not policy inputs, such as `target_pos`."""
    batch_size: int = option(64, ">= 1")
    """Segments per batch."""
    segment: int | None = option(None, ">= 1")
    """Frames of one sampled segment, from which all its windows are cut; null: one window. With a carried memory: steps of
    one truncated-BPTT chunk; null: whole demos."""
    first_step_share: float = option(0.0, "0 .. 1")
    """Share of the segments that start at a demo's first step; for tasks where the cue comes first. Not for a carried
    memory, which always starts there."""
    intervention_weight: float | None = option(None, "> 0")
    """Sampling weight of segments that start while an operator controlled the robot (`run --intervene`); the weight of all
    others is 1; null: 1. Not for a carried memory."""
    frame_stride: int = option(1, ">= 1")
    """Control steps between two frames of a window; above 1 for a slow backbone or a client that executes chunks."""
    placement: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the demos are held while training; auto chooses by size and logs its choice."""
    num_workers: int = option(0, ">= 0")
    """Reader threads, for `placement: disk` only; 0: one per core, at most 4."""
    arm: tuple[int, ...] | None = None
    """Arm columns of the action rows; null: from the file, or inferred and printed."""
    gripper: tuple[int, ...] | None = None
    """Binary gripper columns of the action rows; null: from the file, or inferred and printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.groups:
            named = re.fullmatch(r"[A-Za-z0-9_-]+", name)
            require(named, f"--data.groups: {name!r} is not a name of letters, digits, - and _")
        for name in ("files", "file_weights", "arm", "gripper") if self.groups else ():
            require(not getattr(self, name), f"--data.{name} beside --data.groups; give it within the groups")
        require(
            not self.file_weights or len(self.file_weights) == len(self.files),
            f"--data.file_weights has {len(self.file_weights)} entries for {len(self.files)} --data.files; give one each",
        )


@dataclass(frozen=True)
class NormalizationConfig:
    """How observations and actions are scaled."""

    obs: Normalization = "mean-std"
    """min-max, mean-std, quantile (1-99 %) or none, per dimension, from the training split only."""
    action: Literal["columns", "common"] = "columns"
    """columns: each arm column to [-1, 1] by the training split's min and max; common: every arm column divided by the largest
    half range, so that columns in one unit keep their relative sizes."""
    rotation: Literal["aligned", "6d", "none"] = "aligned"
    """Form in which rotations are learned: aligned (of equivalent quaternions or angles, the one nearest to the mean), 6d, or
    none (unchanged)."""
    rotations: Mapping[str, Literal["quaternion", "axis-angle", "angle", "none"]] = field(default_factory=dict)
    """Columns that are rotations, such as {"actions[3:6]": axis-angle}; default: keys named `quat`, and absolute poses."""


@dataclass(frozen=True)
class OptimizerConfig(Options):
    """AdamW with linear warm-up and cosine decay, as RoboVLMs trains its heads."""

    section: ClassVar[str] = "optimizer"

    lr: float = option(1e-3, "> 0")
    """Peak learning rate."""
    encoder_lr_scale: float = option(1.0, ">= 0")
    """Learning rate of the encoder relative to the rest; with a backbone, that of the backbone's own weights and adapters."""
    min_lr_scale: float = option(0.01, ">= 0")
    """The cosine ends at lr * min_lr_scale."""
    warmup_steps: int = option(100, ">= 0")
    """Steps of linear warm-up."""
    betas: tuple[float, float] = option((0.9, 0.95), ">= 0 and < 1")
    """AdamW's moment decays."""
    weight_decay: float = option(0.01, ">= 0")
    """AdamW's decoupled weight decay."""
    memory_weight_decay: float | None = option(None, ">= 0")
    """Weight decay of the memory's parameters; null: as `weight_decay`."""
    clip_norm: float = option(1.0, "> 0")
    """Largest gradient norm."""
    accumulate: int = option(1, ">= 1")
    """Batches per optimizer step."""
    ema: bool = True
    """Keep and evaluate an exponential moving average of the weights, decay min(0.999, (1 + n) / (10 + n))."""


@dataclass(frozen=True)
class TrainingConfig(Options):
    """Length, validation and precision of a training run."""

    section: ClassVar[str] = "training"

    max_steps: int | None = option(2000, ">= 1")
    """Largest number of optimizer steps; null: the number that `passes` gives."""
    passes: float | None = option(None, "> 0")
    """How often each training frame is seen, on average; null: `max_steps` alone sets the length."""
    min_steps: int | None = option(None, ">= 1")
    """With `passes`: the smallest number of steps, for few demos."""
    max_minutes: float | None = option(None, "> 0")
    """Safety limit [min]: training stops there even if steps remain, and says so; null: none."""
    valid_every: int = option(200, ">= 1")
    """Steps between two passes over the validation demos."""
    checkpoint_every: int = option(200, ">= 1")
    """Steps between two resume files."""
    eval_every: int | None = option(None, ">= 1")
    """Steps between two closed-loop evaluations; null: none."""
    eval_episodes: int = option(50, ">= 1")
    """Episodes of each such evaluation, on seeds that reported evaluations don't use."""
    select: Literal["valid_loss", "success", "last"] = "valid_loss"
    """Which checkpoint becomes the run's policy."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 on GPUs, and for the encoder `conv` on CPUs that compute in it (AVX-512 BF16); float32 elsewhere."""
    seed: int = option(0, "0 .. 4294967295")
    """Seed of the initial weights, the order of the batches and the augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_steps or self.passes, "--training.max_steps null without --training.passes; give one of them")
        require(
            not self.min_steps or self.passes,
            f"--training.min_steps {self.min_steps} without --training.passes; give --training.min_steps null, or passes",
        )

    @property
    def steps(self) -> int:
        """`max_steps`, of settings that `planned` returned."""
        if self.max_steps is None:
            raise ValueError("the number of steps follows from the demos; call planned() first")
        return self.max_steps

    def planned(self, passes_per_step: float) -> "TrainingConfig":
        """These settings with `max_steps` computed from `passes`; one step is this share of a pass over the frames."""
        if self.passes is None:
            return self
        steps = max(self.min_steps or 1, math.ceil(self.passes / passes_per_step))
        return replace(self, max_steps=min(steps, self.max_steps or steps), passes=None, min_steps=None)


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, as a file in `configs/` writes it.

    The sections `encoder`, `text`, `pooling`, `memory`, `action_head` and `execution` hold the options of the chosen kind,
    an instance of the dataclass that the kind is registered with.
    """

    task: str | None = None
    """Simulator task used for closed-loop evaluation while training (`--eval-every`)."""
    plugins: tuple[str, ...] = ()
    """Modules that register further components; imported when this config is read, never when a run folder is."""
    data: DataConfig = field(default_factory=DataConfig)
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    """Random changes to training batches: kind -> its options, such as {shift: {pixels: 4}} or {"shift": ShiftOptions(4)}."""
    encoder: Any = field(default_factory=lambda: default_options("encoder"))
    text: Any = None
    pooling: Any = field(default_factory=lambda: default_options("pooling"))
    memory: Any = field(default_factory=lambda: default_options("memory"))
    action_head: Any = field(default_factory=lambda: default_options("action_head"))
    losses: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_LOSSES))
    """Loss -> weight, or for an auxiliary loss {weight: w, option: value, ...}; from Python also (weight, options object)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    execution: Any = field(default_factory=lambda: default_options("execution"))

    def __post_init__(self) -> None:
        if self.text is None:
            object.__setattr__(self, "text", component("text", default_text_of(self.encoder)).options())
        for section in COMPONENT_SECTIONS:
            found = component_of(getattr(self, section)).family
            require(found == section, f"the section {section} holds options of a {found}; give those of a {section}")
        augmentation = {kind: _options_of("augmentation", kind, given) for kind, given in self.augmentation.items()}
        object.__setattr__(self, "augmentation", augmentation)
        object.__setattr__(self, "losses", {name: _plain_loss(name, given) for name, given in self.losses.items()})
        for name, value in self.losses.items():
            weight = value.get("weight") if isinstance(value, Mapping) else value
            number = isinstance(weight, int | float) and not isinstance(weight, bool) and weight >= 0
            require(number, f"--losses.{name} must be a weight >= 0, or {{weight: w, ...}}, got {value}")
        self._check_memory()
        replan, chunk = self.execution.replan_every, self.action_head.chunk
        require(replan <= chunk, f"--execution.replan_every must be <= --action_head.chunk, got {replan} > {chunk}")

    def _check_memory(self) -> None:
        data = self.data
        if self.history != "carry":
            require(
                data.segment is None or data.segment >= self.window,
                f"--data.segment must be >= --memory.window, got {data.segment} < {self.window}: windows are cut from segments",
            )
            return
        for name in ("groups", "file_weights", "first_step_share", "intervention_weight"):
            require(
                not getattr(data, name),
                f"--data.{name} can't be used with --memory.history carry, which reads whole demos in order",
            )

    @property
    def history(self) -> History:
        """History of the memory: `memory.history`; without it, `window` if the memory has a window, otherwise `none`."""
        return getattr(self.memory, "history", "window" if hasattr(self.memory, "window") else "none")

    @property
    def window(self) -> int:
        """W, frames of the memory's window; 1 without one."""
        return getattr(self.memory, "window", 1)

    @property
    def text_width(self) -> int:
        """Width of the text model's tokens: `encoder.width` (D), or 128 for an encoder without this option."""
        return getattr(self.encoder, "width", 128)

    @property
    def reads_tokens(self) -> bool:
        """Whether the encoder reads tokens written by `robopolicy encode`: the class attribute `reads_tokens`, else False."""
        return getattr(self.encoder, "reads_tokens", False)

    def change(self, changes: Mapping[str, Any]) -> "ExperimentConfig":
        """The config with other values at dotted paths, such as {"memory.window": 16, "encoder.kind": "concat"}.

        The value of a whole section may be its options, such as {"memory": LSTMOptions(window=16)}.

        Raises:
            ConfigError: a path or value doesn't fit.
        """
        from robopolicy.experiment.reading import config_from_dict, config_to_dict, merged, section_values

        values = config_to_dict(self)
        changes = {path: section_values(path, value) for path, value in changes.items()}
        other_encoder = bool({"encoder", "encoder.kind"} & set(changes))
        default_text = component_of(self.text).kind == default_text_of(self.encoder)
        if other_encoder and default_text and not any(path.startswith("text") for path in changes):
            del values["text"]  # the new encoder's default
        return config_from_dict(merged(values, changes), source="change")


def _options_of(family: str, kind: str, options: Any) -> Any:
    """The plain values of an options object, which must be of this kind; anything else as it is."""
    if not is_dataclass(options) or isinstance(options, type):
        return options
    found = component_of(options)
    require(
        (found.family, found.kind) == (family, kind), f"{family} {kind!r} got options of {found.family} {found.kind!r}"
    )
    return plain_values(asdict(options))


def _plain_loss(name: str, given: Any) -> Any:
    """A weight, or a mapping with `weight`; (weight, options object) becomes such a mapping."""
    if isinstance(given, tuple) and len(given) == 2:
        return {"weight": given[0], **_options_of("loss", name, given[1])}
    return given


def default_text_of(encoder: Any) -> str:
    """The text model of a config that names none: the encoder options' class attribute `default_text`, else `vocabulary`."""
    return getattr(encoder, "default_text", "vocabulary")


def default_options(section: str) -> Any:
    """The options of the section's default kind."""
    return component(section, str(COMPONENT_SECTIONS[section])).options()


def plain_values(value: Any) -> Any:
    """Dictionaries and lists, as YAML and JSON hold them."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return value
