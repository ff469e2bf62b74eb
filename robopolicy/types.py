"""The values that the parts of robopolicy exchange, checked when they are created.

Legend of axes, used in every shape annotation of the package:

    batch    B   samples, environments or agents; `*B` stands for any number of leading axes
    window   W   frames in one window             segment  S   frames in one sampled segment (S >= W)
    tokens   N   tokens of one frame              width    D   width of one token
    pooled   P   width of one pooled frame        hidden   H   width of the memory
    chunk    K   actions predicted per frame      arm A, gripper G   action dimensions
    time     T   steps of one demo                layers   L   layers of the memory

Nothing here imports torch: the client and the exported runtime use these values on robot computers without torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robopolicy.action_spec import ActionSpec, Array

TOKENS_KEY = "tokens"
"""The observation key of tokens encoded ahead of time, (N, D)."""
TOKEN_VALID_KEY = "token_valid"
"""The observation key of their mask, (N,): 1, or 0 where a token is padding. Absent: all are valid."""


def printable(text: str) -> str:
    """The text with control characters escaped, since names in an untrusted file may contain terminal commands."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def one_line(error: object) -> str:
    """An error's message with each run of white space, line breaks included, as one space."""
    return " ".join(str(error).split())


MAX_MESSAGE = 1200
"""Largest number of characters in an error's message; a longer one loses its middle."""


class PrintableError(Exception):
    """An error whose message is limited in length and has no control characters, for texts from untrusted files or servers."""

    def __init__(self, message: object = "") -> None:
        text = printable(str(message))
        super().__init__(text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 300]} ... {text[-250:]}")


class DemoFormatError(PrintableError, ValueError):
    """A demo file can't be used as it is; the message names the file, the demo and the key."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and type of one observation key, without batch or time: what a policy expects and a server announces."""

    shape: tuple[int, ...]
    """Such as (7,), or (64, 64, 3) for an image."""
    dtype: str = "float32"
    """NumPy's name; an image is `uint8` and has three axes, everything else is cast to float32."""

    def __post_init__(self) -> None:
        sizes = [size for size in self.shape if isinstance(size, int | np.integer) and size >= 0]
        if len(sizes) != len(self.shape) or not isinstance(self.dtype, str):
            raise ValueError(
                f"shape {self.shape} of type {self.dtype!r}; expected a shape of whole numbers and the name of a type"
            )

    @property
    def is_image(self) -> bool:
        """Whether the key is a camera: uint8 (height, width, channels)."""
        return self.dtype == "uint8" and len(self.shape) == 3

    @property
    def width(self) -> int:
        """Number of values in one entry."""
        return int(np.prod(self.shape))

    def checked(self, array: np.ndarray, name: str, batch: tuple[int, ...] = ()) -> np.ndarray:
        """The array, as float32 unless it is an image, after a check of type, shape and values.

        Args:
            array: (*batch, *shape).
            name: its name in error messages.
            batch: its leading axes.

        Raises:
            ValueError: the type or the shape is wrong, or a value is not finite.
        """
        if self.is_image and array.dtype != np.uint8:
            raise ValueError(f"{name} has type {array.dtype}; expected uint8 images, 0 to 255")
        if array.shape != (*batch, *self.shape):
            raise ValueError(f"{name} has shape {array.shape}; expected {(*batch, *self.shape)}")
        if self.is_image:
            return array
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():  # a graph's max and clip turn NaN into a plausible action
            raise ValueError(f"{name} holds NaN or infinite values; expected finite numbers")
        return array


STEP_ARRAYS = ("executed_actions", "rewards", "dones", "states", "tokens")
"""Arrays with one row per step that a demo may have in addition to actions and observations."""


def require_rows(arrays: Mapping[str, Array], where: str) -> None:
    """Refuse arrays (or HDF5 datasets) of a demo that do not have one row per step; `actions` (T, width) define T > 0.

    Raises:
        DemoFormatError: the number of rows differs, or there are no steps; the message begins with `where`.
    """
    shape = arrays["actions"].shape
    if len(shape) != 2:
        raise DemoFormatError(f"{where}: actions have shape {shape}; expected (steps, width)")
    if shape[0] == 0:
        raise DemoFormatError(f"{where}: no action in it; a demo needs at least one step")
    for key, values in arrays.items():
        rows = values.shape[0] if values.shape else "no"
        if rows != shape[0]:
            raise DemoFormatError(f"{where}: {shape[0]} actions but {rows} rows in {key}; every step needs both")


@dataclass(frozen=True)
class Demo:
    """One demonstration: T steps of observations and the actions taken on them.

    Raises:
        DemoFormatError: arrays differ in length, or the demo has no step.
    """

    name: str
    """`demo_<i>`, as in the file."""
    obs: Mapping[str, np.ndarray]
    """Per key (T, ...): low-dimensional keys float, images uint8 (T, height, width, 3), right way up."""
    actions: np.ndarray
    """(T, width): the label at each step, in the columns of the ActionSpec."""
    instruction: str | None = None
    """The demonstrator's instruction; None if the demo has none."""
    executed_actions: np.ndarray | None = None
    """(T, width): the actions that were executed, if noise was added to the labels; a replay uses these."""
    rewards: np.ndarray | None = None
    """(T,): the reward of the state after the step."""
    dones: np.ndarray | None = None
    """(T,): True where the episode ended after the step."""
    states: np.ndarray | None = None
    """(T, n): full simulator state before each action, if recorded."""
    tokens: np.ndarray | None = None
    """(T, N, D) tokens encoded ahead of time, if recorded."""
    seed: int | None = None
    """Seed of the episode, if it was recorded in a simulator."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """All other attributes of the demo in the file."""

    def __post_init__(self) -> None:
        optional = {key: getattr(self, key) for key in STEP_ARRAYS if getattr(self, key) is not None}
        require_rows({"actions": self.actions, **optional, **{f"obs/{k}": v for k, v in self.obs.items()}}, self.name)

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.actions)


@dataclass(frozen=True)
class Batch:
    """Segments of S frames sampled from the demos, as the data loader yields them for training.

    With S = W a segment is one window; a longer segment contains S - W + 1 windows, which share its encoded frames.
    """

    obs: Mapping[str, Array]
    """Per key (B, S, ...): images uint8, low-dimensional keys float32, in the demos' own units; privileged keys too."""
    instruction_id: Array
    """(B,) int64: index in `instructions` of each segment's instruction; -1 if its demo has none."""
    instructions: tuple[str, ...]
    """All instructions of the data set."""
    target: Array
    """(B, S, K, A+G): the K actions from each frame on, arm normalized to [-1, 1], then gripper labels in {0, 1}."""
    action_valid: Array
    """(B, S, K): True where the target is an action of the demo, False beyond its end."""
    frame_valid: Array
    """(B, S): True where the frame is part of the demo, False beyond its end."""
    episode_start: Array | None = None
    """(B,): True where the segment is the first of its episode; for truncated BPTT."""


@dataclass(frozen=True)
class Chunk:
    """The K actions predicted at each frame: the decoded output of every action head."""

    arm: Array
    """(*B, W, K, A), or (*B, K, A) from a single step; in [-1, 1]."""
    gripper_logit: Array
    """(*B, W, K, G), or (*B, K, G); closed (label 1) where positive."""
    hidden: Array | None = None
    """(*B, W, H): the memory's output from which they were decoded; the action head's losses are computed from it."""


@dataclass(frozen=True)
class Observation:
    """A robot's observation at one instant, ready for a policy."""

    obs: Mapping[str, Array]
    """Per key (*B, ...): images uint8 (*B, height, width, 3), low-dimensional keys float, in the demos' own units."""
    instruction: str | Sequence[str | None] | None = None
    """One instruction for all, or one for each episode of the batch."""
    stamp_s: float = 0.0
    """When it was taken, on the control loop's clock [s]."""


@dataclass(frozen=True)
class Command:
    """Targets for a robot's joints, grippers and base at one instant."""

    joint_position_rad: np.ndarray
    """(joints,) target angles [rad]."""
    gripper_opening_m: Array
    """(grippers,) distance between the fingers of each [m]; NaN: unchanged. A single number is accepted for one gripper."""
    stamp_s: float
    """Time for which the targets are meant, on the control loop's clock [s]."""
    base_velocity: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(base,) velocities of a mobile base in the order of the profile's `base_velocity` [m/s, rad/s]; empty without a base."""

    def __post_init__(self) -> None:
        openings = np.atleast_1d(np.asarray(self.gripper_opening_m, np.float64))
        object.__setattr__(self, "gripper_opening_m", openings)


@dataclass(frozen=True)
class Prediction:
    """A policy's prediction at one frame, in the demos' own units."""

    actions: Array
    """(*B, K, width): action rows in the demos' units and column order."""
    gripper_logit: Array | None = None
    """(*B, K, G): label 1 where positive; None if the policy does not provide logits."""


@dataclass(frozen=True)
class Prefix:
    """The planned actions when a chunk is predicted: the chunk begins with the first ones and should agree with the others."""

    actions: Array
    """(*B, k, width) action rows of the control steps from the observation on, an array or a tensor; NaN if an episode has no
    plan there."""
    frozen: int | None = None
    """Number of first rows with which the chunk begins exactly; None: all. An action head that supports guidance is guided
    towards the rows after them, with a weight that decreases over the chunk."""
    best_of: int = 1
    """Number of chunks that are sampled; the one nearest to `actions` is returned (backward coherence, arXiv 2408.17355)."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy's inputs, outputs and rates."""

    observation: Mapping[str, ArraySpec]
    """Per key that the policy reads, the shape and type of one frame."""
    action: ActionSpec
    """Columns of its action rows."""
    chunk: int
    """K, actions predicted per frame."""
    window: int
    """W, frames of memory."""
    history: str = "window"
    """window (the last W frames), carry (the whole episode) or none (the current frame)."""
    instruction: bool = False
    """Whether it reads an instruction."""
    frame_stride: int = 1
    """Control steps between two frames of its memory."""
    control_dt: float | None = None
    """Seconds between two actions, if known."""
    samples: bool = False
    """Whether its chunks depend on a generator."""
    prefix: int = 0
    """Longest prefix of committed actions that it continues; 0: none."""
    execution: Mapping[str, Any] = field(default_factory=dict)
    """Execution options that it was trained for, such as `replan_every`; empty if unknown."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Task, versions and similar facts; only those that may be published (no path, no seed)."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of the images that it reads."""
        return tuple(key for key, spec in self.observation.items() if spec.is_image)

    @property
    def image_size(self) -> int:
        """Height of the first camera's images [pixels]; 64 without a camera."""
        return self.observation[self.cameras[0]].shape[0] if self.cameras else 64

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` reads it back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PolicySpec":
        """The inverse of `to_dict`."""
        specs = {key: ArraySpec(tuple(spec["shape"]), spec["dtype"]) for key, spec in values["observation"].items()}
        return cls(**{**values, "observation": specs, "action": ActionSpec.from_dict(values["action"])})


@runtime_checkable
class Policy(Protocol):
    """The interface of every policy: trained, exported, behind a server, or several together.

    The state of running episodes is a value that the caller holds; it has `reset(done) -> state`, with `done` bool (*B).
    """

    spec: PolicySpec
    """Its inputs, outputs and rates."""

    def initial_state(self, batch: int | Sequence[int] = ()) -> Any:
        """The state before the first frame; `batch` is a count, a shape, or () for one robot without batch axes."""
        ...

    def act(
        self, observation: Observation | Mapping[str, Any], state: Any, *, generator: Any = None, prefix: Any = None
    ) -> tuple[Array, Any]:
        """Actions (*B, K, width) in the demos' units and columns, and the state that includes this frame.

        Args:
            observation: key -> array (*B, ...), and `instruction`: a string, one per entry of the batch, or None.
            state: state of the episodes so far, from `initial_state` or the last call.
            generator: generator for a policy that samples; None: return its most likely chunk.
            prefix: a `Prefix`, or actions (*B, k, width) with which the chunk begins exactly, for policies that support it.
        """
        ...

    def predict(
        self, observation: Observation | Mapping[str, Any], state: Any, *, generator: Any = None, prefix: Any = None
    ) -> tuple[Prediction, Any]:
        """As `act`, with the gripper's logits."""
        ...
