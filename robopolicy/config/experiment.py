"""What an experiment is: one declaration is the YAML schema, the `--help` text and the type check.

Contradictions are refused in the words of the command line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from robopolicy.config.checks import expect, require

Normalization: TypeAlias = Literal["min-max", "mean-std", "quantile", "none"]
Strategy: TypeAlias = Literal["receding", "ensemble", "freeze"]


@dataclass(frozen=True)
class DataConfig:
    """Which demonstrations, which of their keys, and how batches are drawn from them."""

    files: tuple[str, ...] = ()
    """Demo files in the robomimic layout, or any format that `robopolicy check` opens."""
    file_weights: tuple[float, ...] = ()
    """How often each file is drawn from, relative to the others; empty: by its number of steps."""
    train_demos: int | None = None
    """Use only the first this many training demos of each file."""
    train_filter: str = "train"
    """Filter key (`mask/<name>`) of the training demos, where the file has it."""
    valid_filter: str = "valid"
    """Filter key (`mask/<name>`) of the validation demos, where the file has it."""
    valid_fraction: float = 0.1
    """Share of demos held out for validation where the file has no masks."""
    obs_keys: tuple[str, ...] | None = None
    """Low-dimensional observation keys the policy sees; null: every 1-D key."""
    cameras: tuple[str, ...] | None = ()
    """Image observation keys the policy sees; null: every camera of the demos."""
    target_keys: tuple[str, ...] = ()
    """Keys that loss terms may use in training but the policy never sees, such as `target_pos`."""
    batch_size: int = 64
    """Segments (or windows) a batch."""
    segment: int | None = None
    """Frames of one sampled segment, from which all its windows are cut; null: one window."""
    first_step_share: float = 0.0
    """Share of the segments that begin at a demo's first step; raise it where what was seen there must be remembered."""
    frame_stride: int = 1
    """Control steps between two frames of a window: what a slow backbone, or a client that executes chunks, will show."""
    placement: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the demos are held while training; auto chooses by size and says so."""
    num_workers: int = 0
    """Reader threads, for `placement: disk` only; 0: as many as cores, at most 4."""
    arm: tuple[int, ...] | None = None
    """Arm columns of the action rows; null: from the file, or by the default rule."""
    gripper: tuple[int, ...] | None = None
    """Binary gripper columns of the action rows; null: from the file, or by the default rule."""

    def __post_init__(self) -> None:
        expect(self, "data", "1 or more", "train_demos", "batch_size", "segment", "frame_stride")
        expect(self, "data", "above 0", "file_weights")
        expect(self, "data", "0 or more", "num_workers")
        expect(self, "data", "0 .. 1", "first_step_share")
        expect(self, "data", "0 or more, below 1", "valid_fraction")
        require(
            not self.file_weights or len(self.file_weights) == len(self.files),
            f"--data.file_weights has {len(self.file_weights)} entries for {len(self.files)} --data.files; give one each",
        )


@dataclass(frozen=True)
class NormalizationConfig:
    """How observations are scaled; arm actions always go to [-1, 1] by the training split's min and max."""

    obs: Normalization = "mean-std"
    """min-max, mean-std, quantile (1-99 %) or none, per dimension, from the training split only."""
    rotation: Literal["aligned", "6d", "none"] = "aligned"
    """How rotations are learned: aligned (of equal quaternions or angles the one nearest to the mean), 6d, or as they are."""
    rotations: Mapping[str, Literal["quaternion", "axis-angle", "angle", "none"]] = field(default_factory=dict)
    """Columns that are rotations, such as {"actions[3:6]": axis-angle}; by default keys named `quat`, absolute poses."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes to training batches, made on the device."""

    shift_px: int = 0
    """Largest shift of the pictures [pixels], the same for all frames of a segment."""
    crop: float = 1.0
    """Side of a random crop as a share of the picture's side, scaled back; 1 is off."""
    brightness: float = 0.0
    """Largest relative change of brightness."""
    contrast: float = 0.0
    """Largest relative change of contrast."""
    saturation: float = 0.0
    """Largest relative change of saturation."""
    obs_noise: float = 0.0
    """Standard deviation of noise added to normalized low-dimensional observations."""
    obs_dropout: float = 0.0
    """Probability that a segment's low-dimensional observations are hidden (set to their mean)."""


@dataclass(frozen=True)
class EncoderConfig:
    """Observation -> tokens."""

    kind: Literal["auto", "keys", "pixels", "precomputed", "transformers"] = "keys"
    """keys (low-dim), pixels (small trainable network), precomputed (tokens in the file), transformers (a VLM); auto:
    pixels where the policy sees pictures, else keys."""
    width: int = 128
    """D, the width of one token."""
    hidden: int = 128
    """Width inside the encoder's own layers; 0 with `precomputed` hands its tokens on as they are."""
    instruction: bool = True
    """Show the policy the instruction, where demos carry one; False is the untold baseline."""
    text_model: str | None = None
    """null: a small learned vocabulary; `minilm`: sentence embeddings (extra `text`)."""
    model: str | None = None
    """For `transformers`: a local folder or a model name."""
    lora_rank: int = 0
    """For `transformers`: fine-tune with LoRA of this rank; 0 keeps the backbone frozen."""
    template: str = "{instruction}"
    """For `transformers`: how an instruction is put to the backbone."""

    def __post_init__(self) -> None:
        expect(self, "encoder", "1 or more", "width")
        expect(self, "encoder", "0 or more", "hidden", "lora_rank")
        told = f"--encoder.hidden is 0; expected 1 or more with --encoder.kind {self.kind}"
        require(self.hidden > 0 or self.kind == "precomputed", told)


@dataclass(frozen=True)
class HeadConfig:
    """The policy head: pooling, memory, action head."""

    window: int = 8
    """W, frames of memory."""
    chunk: int = 8
    """K, actions predicted per frame."""
    cell: Literal["lstm", "gru", "transformer", "none"] = "lstm"
    """The memory's cell."""
    history: Literal["window", "carry", "none"] = "window"
    """The last W frames exactly, one state for the whole episode, or the present frame only."""
    layers: int = 2
    """Layers of the memory."""
    hidden: int = 256
    """H, width of the memory."""
    dropout: float = 0.0
    """Dropout between the memory's layers."""
    pooling: Literal["max", "mean", "attention", "resampler", "none"] = "max"
    """Tokens of one frame -> one vector."""
    latent: int = 1
    """Vectors that pooling keeps per frame."""
    head: Literal["regression", "gmm", "discrete"] = "regression"
    """The action head."""
    head_widths: tuple[int, ...] = (256, 128)
    """Hidden widths of the action head's perceptrons."""
    modes: int = 5
    """Mixture components, for `head: gmm`."""
    min_std: float = 0.01
    """Least standard deviation of a component, for `head: gmm`."""
    bins: int = 256
    """Bins of each arm column over [-1, 1], for `head: discrete`."""
    pooling_heads: int = 1
    """Attention heads of the poolings `attention` and `resampler`."""
    pooling_depth: int = 2
    """Layers of the pooling `resampler`."""
    attention_heads: int = 8
    """Attention heads of the cell `transformer`."""

    def __post_init__(self) -> None:
        sizes = ("window", "chunk", "layers", "hidden", "latent", "head_widths", "modes", "bins")
        expect(self, "head", "1 or more", *sizes, "pooling_heads", "pooling_depth", "attention_heads")
        expect(self, "head", "above 0", "min_std")
        expect(self, "head", "0 or more, below 1", "dropout")
        require(
            not (self.cell == "transformer" and self.history == "carry"),
            "--head.cell transformer with --head.history carry: a transformer has no state to carry; use window, lstm or gru",
        )
        require(
            not (self.cell == "none" and self.history == "carry"),
            "--head.cell none with --head.history carry: there is no memory to carry; use --head.history none",
        )


@dataclass(frozen=True)
class LossConfig:
    """The weighted sum of named terms that is minimized."""

    terms: Mapping[str, float] = field(default_factory=lambda: {"arm": 1.0, "gripper": 0.01})
    """Weight of each named term: `arm`, `gripper`, `forward`, `remember`; `where` of the encoder pixels; `choose` of keys that
    are alike, 1 unless named. A term that no part of the model provides is an error."""
    huber_delta: float = 1.0
    """Where the arm's loss turns from square to linear, in normalized action units."""
    arm_weights: tuple[float, ...] = ()
    """Weight of each arm dimension; empty: all 1."""

    def __post_init__(self) -> None:
        expect(self, "loss", "above 0", "huber_delta")
        expect(self, "loss", "0 or more", "terms", "arm_weights")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, warm-up and cosine, as RoboVLMs trains its heads."""

    lr: float = 1e-3
    """Peak learning rate."""
    encoder_lr_scale: float = 1.0
    """Learning rate of the encoder relative to the rest."""
    min_lr_scale: float = 0.01
    """The cosine ends at lr * min_lr_scale."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    accumulate: int = 1
    """Batches per optimizer step."""
    ema: bool = True
    """Evaluate with an exponential moving average of the weights, decay min(0.999, (1 + n) / (10 + n))."""

    def __post_init__(self) -> None:
        expect(self, "optimizer", "above 0", "lr", "clip_norm")
        expect(self, "optimizer", "0 or more", "encoder_lr_scale", "min_lr_scale", "warmup_steps", "weight_decay")
        expect(self, "optimizer", "0 or more, below 1", "betas")
        expect(self, "optimizer", "1 or more", "accumulate")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how often checked, and at which precision."""

    max_steps: int = 2000
    """Optimizer steps."""
    max_minutes: float | None = None
    """Stop after this long even if steps remain; the schedule follows the clock."""
    valid_every: int = 200
    """Steps between two passes over the validation demos."""
    checkpoint_every: int = 200
    """Steps between two resume files."""
    eval_every: int | None = None
    """Steps between two closed-loop evaluations; null: none."""
    eval_episodes: int = 50
    """Episodes of each such evaluation, on seeds apart from those reported."""
    select: Literal["valid_loss", "success", "last"] = "valid_loss"
    """Which checkpoint becomes the run's policy."""
    tbptt: int | None = None
    """For `history: carry`: steps of one truncated-BPTT chunk; null: whole episodes."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 on GPUs, float32 on the CPU."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    def __post_init__(self) -> None:
        every = ("valid_every", "checkpoint_every", "eval_every")
        expect(self, "training", "1 or more", "max_steps", "eval_episodes", "tbptt", *every)
        expect(self, "training", "above 0", "max_minutes")
        expect(self, "training", "0 .. 4294967295", "seed")


@dataclass(frozen=True)
class ExecutionConfig:
    """Which action of which chunk is executed when."""

    strategy: Strategy = "receding"
    """receding (a new chunk every replan_every steps), ensemble (ACT's weights), freeze (keep the latency's prefix)."""
    replan_every: int = 1
    """Actions executed before the next chunk is used."""
    ensemble_decay: float = 0.01
    """m of ACT's weights exp(-m i), i = 0 the oldest chunk."""
    gripper_hysteresis: float = 0.0
    """Logit beyond which the gripper changes its mind; 0 switches at 0."""

    def __post_init__(self) -> None:
        expect(self, "execution", "1 or more", "replan_every")
        expect(self, "execution", "0 or more", "ensemble_decay", "gripper_hysteresis")


@dataclass(frozen=True)
class RandomizationConfig:
    """How far the simulator's episodes differ in what a task leaves alone, each drawn from its seed; 0 is off."""

    joint_rad: float = 0.0
    """Placement: largest deviation of each arm joint from its start, besides the task's own [rad]."""
    turn_rad: float = 0.0
    """Placement: largest turn of each free object about the vertical, besides the task's own [rad]."""
    color: float = 0.0
    """Largest change of each part's red, green and blue, of 1."""
    light: float = 0.0
    """Largest relative change of the light's brightness, and of its direction's components."""
    camera_m: float = 0.0
    """Largest shift of a camera along each axis [m]."""
    camera_rad: float = 0.0
    """Largest turn of a camera about each axis [rad]."""
    friction: float = 0.0
    """Largest relative change of all friction, below 1."""
    mass: float = 0.0
    """Largest relative change of each free object's mass, below 1."""
    delay_steps: int = 0
    """Latency: most control steps by which an episode's actions come late."""
    action_noise: float = 0.0
    """Standard deviation of noise on the executed displacement, in the action's units of [-1, 1]."""
    obs_noise: float = 0.0
    """Standard deviation of noise on every low-dimensional reading but the privileged ones [m, rad]."""

    def __post_init__(self) -> None:
        expect(self, "randomization", "0 or more", *vars(self))
        expect(self, "randomization", "0 or more, below 1", "friction", "mass")

    @property
    def active(self) -> bool:
        """Whether anything differs at all."""
        return any(vars(self).values())


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, as a file in `configs/` writes it."""

    task: str | None = None
    """Simulator task used for closed-loop evaluation while training (`--eval-every`)."""
    data: DataConfig = field(default_factory=DataConfig)
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        segment = self.data.segment
        require(
            segment is None or segment >= self.head.window,
            f"--data.segment {segment} is shorter than --head.window {self.head.window}; windows are cut from segments",
        )
        require(
            self.execution.replan_every <= self.head.chunk,
            f"--execution.replan_every {self.execution.replan_every} is more than the --head.chunk {self.head.chunk} "
            "actions there are",
        )
