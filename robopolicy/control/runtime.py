"""Runs an exported policy with onnxruntime and NumPy alone: no torch on the robot computer.

`robopolicy export` copies this file and the modules that it needs into the exported folder's `runtime/`.

policy = load("exported/")
state = policy.initial_state(1)
actions, state = policy.act({"ee_pose": pose[None], "instruction": "lift the red cube"}, state)
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.types import Array, Observation, PolicySpec, Prediction, Prefix

logger = logging.getLogger("robopolicy.runtime")

MANIFEST, GRAPH = "manifest.json", "policy.onnx"
"""The two files of an exported folder."""
ONNX = "onnx"
"""The only format of a graph: it holds operators and weights, and nothing that could be executed or imported."""
FORMAT = 1
"""Version of an exported folder's layout; raised when an older reader could no longer understand it."""

AGE, TEXT, ACTIONS, NOISE = "age", "instruction", "actions", "action_noise"
"""Names in the graph beside the observation's keys; states are `state.0`, `state.1`, ... in and `next.<name>` out."""

REPORTED = 64
"""How many unknown words a policy reports before it reports no more; instructions may come from strangers."""
PAD, UNKNOWN = 0, 1
"""Word numbers as in `robopolicy.model.texts`; the first known word has number 2."""


class ExportError(ValueError):
    """An exported folder that can't be used; the message is one line."""


@dataclass(frozen=True, eq=False)
class ExportedState:
    """The memory of running episodes as the graph takes it; every method gives a new state."""

    batch_shape: tuple[int, ...]
    """*B, the leading axes of observations and actions; flattened in the arrays below."""
    age: np.ndarray
    """(episodes,) int64, frames seen by each, counted up to W."""
    tensors: tuple[np.ndarray, ...]
    """Each (layers, episodes, ...)."""
    carried: bool = False
    """Whether a reset must clear the tensors; a window never reads the rows from before its episode."""

    def reset(self, done: Array) -> "ExportedState":
        """Forget the episodes where `done` (*B) is True."""
        over = np.asarray(done, dtype=bool)
        if over.shape != self.batch_shape:
            raise ValueError(f"done has shape {over.shape}; this state holds episodes of shape {self.batch_shape}")
        over = over.reshape(-1)
        tensors = self.tensors
        if self.carried:
            tensors = tuple(np.where(over[:, None], np.float32(0), tensor) for tensor in tensors)
        return replace(self, age=np.where(over, 0, self.age), tensors=tensors)

    @staticmethod
    def concat(states: Sequence["ExportedState"]) -> "ExportedState":
        """One state out of several with one batch axis each, end to end."""
        age = np.concatenate([state.age for state in states])
        tensors = zip(*(state.tensors for state in states), strict=True)
        joined = tuple(np.concatenate(parts, axis=1) for parts in tensors)
        return replace(states[0], batch_shape=age.shape, age=age, tensors=joined)

    def split(self, sizes: int) -> list["ExportedState"]:
        """Parts of `sizes` episodes along the one batch axis; `concat` undoes it."""
        parts = [slice(start, start + sizes) for start in range(0, len(self.age), sizes)]
        return [
            replace(
                self,
                batch_shape=self.age[part].shape,
                age=self.age[part],
                tensors=tuple(t[:, part] for t in self.tensors),
            )
            for part in parts
        ]


class ExportedPolicy:
    """An exported policy, with the methods of a policy from `robopolicy.load_policy`: `initial_state` and `act`."""

    def __init__(self, manifest: Mapping[str, Any], session: Any) -> None:
        self.spec = PolicySpec.from_dict({**manifest["spec"], "execution": manifest.get("execution", {})})
        self.manifest = dict(manifest)
        self._session, self._outputs = session, [output.name for output in session.get_outputs()]
        self._text = manifest["text"]
        noise = manifest.get("noise")
        self._noise = None if noise is None else np.asarray(noise, np.float32)
        self._prepared: dict[tuple[str | None, ...], np.ndarray] = {}
        self._numbers = {word: place for place, word in enumerate((self._text or {}).get("words", ()), start=2)}
        self._reported: set[str] = set()
        self.state_shapes = [entry.shape for entry in session.get_inputs() if entry.name.startswith("state.")]
        """Shape of each tensor of the state, as the graph itself says; the batch axis is not an integer."""

    def initial_state(self, batch: int | Sequence[int] = ()) -> ExportedState:
        """The state before the first frame; `batch` is a count, a shape, or () for one robot without axes."""
        shape = (batch,) if isinstance(batch, int) else tuple(batch)
        count = math.prod(shape)
        tensors = tuple(
            np.zeros([axis if isinstance(axis, int) else count for axis in axes], np.float32)
            for axes in self.state_shapes
        )
        return ExportedState(shape, np.zeros(count, np.int64), tensors, carried=self.spec.history == "carry")

    def predict(
        self, observation: Observation | Mapping[str, Any], state: ExportedState, **options: Any
    ) -> tuple[Prediction, ExportedState]:
        """As `act`; an exported policy gives no gripper logits."""
        actions, state = self.act(observation, state, **options)
        return Prediction(actions), state

    def act(
        self,
        observation: Observation | Mapping[str, Any],
        state: ExportedState,
        *,
        generator: np.random.Generator | None = None,
        prefix: Prefix | Array | None = None,
    ) -> tuple[np.ndarray, ExportedState]:
        """The next K action rows (*B, K, width) in the demos' units and column order, and the state that has seen them.

        Args:
            observation: key -> array (*B, ...), and `instruction`.
            state: state of the episodes so far, from `initial_state` or the last call.
            generator: NumPy's generator, source of the noise of an action head that turns noise into actions (`flow`); None:
                the same noise every time, as in torch.
            prefix: refused; an exported policy continues no plan.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: a shape or type is not what the policy was trained on, or a value is NaN or infinite; or a prefix
                is given.
        """
        if prefix is not None:
            raise ValueError("an exported policy continues no prefix; run it without one, or the run folder itself")
        if isinstance(observation, Observation):
            observation = {**observation.obs, TEXT: observation.instruction}
        feed = {key: self._input(key, observation, state.batch_shape) for key in self.spec.observation}
        if self._text is not None:
            feed[TEXT] = self._words(observation.get(TEXT), len(state.age), state.batch_shape)
        if self._noise is not None:
            shape = (len(state.age), *self._noise.shape)
            drawn = np.broadcast_to(self._noise, shape) if generator is None else generator.standard_normal(shape)
            feed[NOISE] = np.ascontiguousarray(drawn, dtype=np.float32)
        feed[AGE] = state.age
        feed |= {f"state.{i}": tensor for i, tensor in enumerate(state.tensors)}
        given = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        after = tuple(given[f"next.state.{i}"] for i in range(len(state.tensors)))
        actions = given[ACTIONS].reshape(*state.batch_shape, *given[ACTIONS].shape[1:])
        return actions, replace(state, age=given[f"next.{AGE}"], tensors=after)

    def _input(self, key: str, observation: Mapping[str, Any], batch: tuple[int, ...]) -> np.ndarray:
        expected = self.spec.observation[key]
        if key not in observation:
            kind = "camera" if expected.is_image else "key"
            raise KeyError(f"{kind} {key!r} is not in this observation. It has: {', '.join(observation)}")
        array = expected.checked(np.asarray(observation[key]), f"observation {key!r}", batch)
        return np.ascontiguousarray(array.reshape(-1, *expected.shape))

    def _words(self, instruction: Any, count: int, batch: tuple[int, ...]) -> np.ndarray:
        """Word numbers (episodes, words), as `Vocabulary.encode` gives them."""
        entries = (instruction,) if instruction is None or isinstance(instruction, str) else tuple(instruction)
        if len(entries) > 1 and (not batch or len(entries) != batch[0]):
            raise ValueError(f"{len(entries)} instructions for a batch of {batch}; give one, or one per entry")
        if entries not in self._prepared:
            self._prepared = {entries: np.stack([self._numbered(entry) for entry in entries])}
        return np.repeat(self._prepared[entries], count // len(entries), axis=0)

    def _numbered(self, instruction: str | None) -> np.ndarray:
        """Word numbers (words) of one instruction."""
        words = re.findall(r"\w+", (instruction or "").lower())
        numbers = np.full(self._text["length"], PAD, np.int64)
        unknown = [word for word in words if word not in self._numbers]
        self._report(unknown, "not in the training instructions: read as <unk>")
        self._report(words[len(numbers) :], f"beyond the {len(numbers)} words that this policy reads: left out")
        known = [self._numbers.get(word, UNKNOWN) for word in words[: len(numbers)]]
        numbers[: len(known)] = known
        return numbers

    def _report(self, words: Sequence[str], why: str) -> None:
        for word in words:
            if word not in self._reported and len(self._reported) < REPORTED:
                self._reported.add(word)
                logger.warning("instruction word %r %s", word, why)


def _open_graph(path: Path, threads: int | None) -> Any:
    """The onnxruntime session of a graph."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "running an exported policy needs onnxruntime, which isn't installed; pip install 'robopolicy[export]'"
        ) from error
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own exception classes
        raise ExportError(f"{path}: not an ONNX graph that can be run ({_reason(error)}); export again") from None


def require_as_exported(folder: str | Path, precision: str, flow_steps: int | None = None) -> None:
    """Refuse a precision, or a number of flow steps, other than that of the exported policy.

    Raises:
        ExportError: another one was requested; the message says what to do.
    """
    if precision != "float32":
        raise ExportError(
            f"{folder}: an exported policy keeps its precision; leave --precision out, and export with --int8 for int8"
        )
    if flow_steps is not None:
        raise ExportError(
            f"{folder}: an exported policy keeps its flow steps; export again with --flow-steps {flow_steps}"
        )


def load(folder: str | Path, threads: int | None = None) -> ExportedPolicy:
    """The policy in an exported folder, ready to act.

    Args:
        folder: what `robopolicy export` wrote.
        threads: number of onnxruntime's threads; None: its own default.

    Raises:
        ExportError: the folder has no manifest, one of another version, or no graph.
        ImportError: onnxruntime is missing.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder}: no {MANIFEST} in it; give a folder that `robopolicy export` wrote")
    manifest = read_manifest(folder)
    graph = folder / GRAPH
    if not graph.is_file():
        raise ExportError(f"{graph}: the graph that belongs to {MANIFEST} is missing; export again")
    session = _open_graph(graph, threads)
    try:
        policy = ExportedPolicy(manifest, session)
        expected = {key: spec.shape for key, spec in policy.spec.observation.items()}
        expected |= {TEXT: (manifest["text"]["length"],)} if policy.spec.instruction else {}
        expected |= {} if manifest.get("noise") is None else {NOISE: np.shape(manifest["noise"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{folder / MANIFEST}: not a manifest of an export ({_reason(error)}); export again"
        ) from None
    expected |= {AGE: ()}
    states = {f"state.{place}" for place in range(len(policy.state_shapes))}
    found = {entry.name: tuple(entry.shape[1:]) for entry in session.get_inputs() if entry.name not in states}
    if expected != found:
        differing = ", ".join(sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key)))
        raise ExportError(f"{folder}: {GRAPH} and {MANIFEST} don't belong together; they differ in: {differing}")
    return policy


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of an exported folder.

    Raises:
        ExportError: the manifest is not JSON, or of another version or format.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not JSON ({_reason(error)}); export again") from None
    if not isinstance(manifest, dict):
        raise ExportError(f"{path}: expected a JSON object, got {type(manifest).__name__}; export again")
    if (found := manifest.get("format_version")) != FORMAT:
        raise ExportError(f"{path}: format version {found!r}; this robopolicy reads {FORMAT}; export again")
    if (found := manifest.get("format")) != ONNX:  # torch.export files, for one, are unpickled when loaded
        raise ExportError(f"{path}: format {found!r}; only {ONNX!r} is run, which holds no code; export again")
    return manifest


def _reason(error: Exception) -> str:
    """One short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
