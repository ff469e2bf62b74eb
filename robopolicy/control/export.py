"""A policy as one ONNX graph, with the memory as explicit inputs and outputs.

The graph contains normalization, encoder, pooling, recurrence (staggered window included), action head and
un-normalization. Only the conversion of the instruction to word numbers is outside; `runtime.py` does it in NumPy.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.control import runtime
from robopolicy.control.quantization import quantize
from robopolicy.control.runtime import ACTIONS, AGE, FORMAT, GRAPH, MANIFEST, NOISE, ONNX, TEXT, ExportError
from robopolicy.files import remove_unfinished, replacing, write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import History, MemoryState
from robopolicy.model.texts.vocabulary import VocabularyText
from robopolicy.types import PolicySpec

TOLERANCE = 1e-4
"""Largest difference between the actions of a float32 export and torch's, as a share of each action column's range."""
INT8_TOLERANCE = 0.02
"""Default of the same tolerance for an int8 export."""
FRAMES, ROWS = 512, 8
"""Maximum number of recorded frames on which the int8 error is measured, and number of sequences that they are split into."""
EXAMPLE_BATCH = 3
"""Batch size of the example inputs for tracing; a batch size of 1 would make the batch axis static."""


class GraphPolicy(nn.Module):
    """One tick of a `ChunkPolicy` with plain tensors in and out, in the order of `inputs` and `outputs`."""

    history: History

    def __init__(self, policy: ChunkPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.history = policy.initial_state(1).history
        self.state_count = len(policy.initial_state(1).tensors)
        states = [f"state.{i}" for i in range(self.state_count)]
        self.noise: Tensor | None = getattr(policy.head.action_head, "fixed_noise", None)
        """(K, A) the fixed noise of an action head that turns noise into actions; None for other heads."""
        optional = [TEXT] * (policy.text is not None) + [NOISE] * (self.noise is not None)
        self.inputs = [*policy.obs, *optional, AGE, *states]
        self.outputs = [ACTIONS, f"next.{AGE}", *(f"next.{name}" for name in states)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Actions (B, K, width) in the demos' units, age (B,) and states after this frame."""
        given = dict(zip(self.inputs, tensors, strict=True))
        encoding = self.policy.encode({key: given[key] for key in self.policy.obs}, given.get(TEXT))
        pooled = self.policy.head.pool(encoding.tokens, encoding.token_valid)
        before = MemoryState(self.history, given[AGE], tensors[len(tensors) - self.state_count :])
        hidden, after = self.policy.head.memory.step(pooled, before)
        noise = {} if self.noise is None else {"noise": given[NOISE]}
        rows = self.policy.action_normalizer.to_rows(self.policy.head.action_head.decode(hidden, **noise))
        return rows, after.age, *after.tensors

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and types, with random content."""
        generator = torch.Generator().manual_seed(seed)
        values = [torch.from_numpy(value) for value in _random_observation(self.policy, batch, seed).values()]
        if self.policy.text is not None:
            text = self.policy.text.prepare([None] * batch)
            values.append(torch.randint(0, 2, text.shape, generator=generator, dtype=text.dtype))
        if self.noise is not None:
            values.append(torch.randn((batch, *self.noise.shape), generator=generator))
        state = self.policy.initial_state(batch)
        return (*values, state.age, *state.tensors)


def export_policy(
    policy: ChunkPolicy,
    out: str | Path,
    int8: bool = False,
    int8_tolerance: float = INT8_TOLERANCE,
    frames: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Export a policy into the folder `out`: the graph and `manifest.json`.

    Before the graph is kept, its actions are compared with torch's on random observations, in batches of 1, 2 and 5 over
    2 * window + 1 frames. An int8 graph is compared on recorded frames.

    Args:
        policy: as `robopolicy.load_policy` returns it, on the CPU.
        out: the folder; created if it doesn't exist.
        int8: dynamic quantization of the matrix products, with int8 weights. As many of the most sensitive layers stay float
            as needed for an error within `int8_tolerance`; the manifest lists them and the remaining error.
        int8_tolerance: largest difference of an action from torch's, as a share of its column's range.
        frames: consecutive observations of demos, without batch axes, on which the int8 error is measured; up to 512 are
            used. If there are fewer than 8, or a key is missing, random observations are used.

    Raises:
        ExportError: the policy can't be exported, the float32 graph differs from torch by more than 1e-4, or no int8 graph
            is within the tolerance.
    """
    out = Path(out)
    if not int8_tolerance > 0:
        raise ExportError(f"--int8-tolerance must be > 0, got {int8_tolerance:g}")
    _require_exportable(policy)
    graph = GraphPolicy(policy).eval()
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out)
    (out / MANIFEST).unlink(missing_ok=True)
    with replacing(out / GRAPH) as temporary:
        _write_onnx(graph, temporary)
    manifest = _manifest(graph, policy.spec, int8)
    write_file(out / MANIFEST, json.dumps(manifest, indent=1))
    error = Reference(policy, _random_runs(policy)).largest_error(out)
    if not error <= TOLERANCE:
        (out / MANIFEST).unlink()
        raise ExportError(f"{out}: the graph differs from torch by {error:.2g} of an action's range; nothing exported")
    if int8:
        reference = Reference(policy, _recorded_runs(policy, frames) or _random_runs(policy))
        try:
            manifest["float_layers"], error = quantize(out, reference.largest_error, int8_tolerance)
        except ExportError:
            (out / MANIFEST).unlink()
            raise
        manifest |= {"int8_tolerance": int8_tolerance, "int8_frames": min(len(frames), FRAMES)}
    write_file(out / MANIFEST, json.dumps(manifest | {"error_to_torch": error}, indent=1))
    return out


def _program(graph: GraphPolicy) -> torch.export.ExportedProgram:
    torch._dynamo.reset()  # a second export in one process would reuse the first one's sizes
    example = graph.example(EXAMPLE_BATCH)
    batch = torch.export.Dim("batch", min=1, max=4096)
    axes = tuple({1 if name.startswith("state.") else 0: batch} for name in graph.inputs)
    with torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes=(axes,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths on this machine
    program.example_inputs = None
    return program


def _write_onnx(graph: GraphPolicy, path: Path) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs {error.name}, which isn't installed; pip install 'robopolicy[export]'"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision, which is not used
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings about the exporter's own code
        program = torch.onnx.export(
            _program(graph),
            dynamo=True,
            input_names=graph.inputs,
            output_names=graph.outputs,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _manifest(graph: GraphPolicy, spec: PolicySpec, int8: bool) -> dict[str, Any]:
    policy = graph.policy
    example = graph.example(EXAMPLE_BATCH)
    with torch.no_grad():
        answer = graph(*example)
    text = policy.text
    vocabulary = text.vocabulary if isinstance(text, VocabularyText) else None
    samples = graph.noise is not None  # its noise input is the graph's only source of randomness
    inputs, values = _described(graph.inputs, example), replace(spec, samples=samples, prefix=0).to_dict()
    return {
        "format_version": FORMAT,
        "format": ONNX,
        "file": GRAPH,
        "int8": int8,
        "execution": values.pop("execution"),
        "spec": values,
        "noise": None if graph.noise is None else graph.noise.tolist(),
        "text": {"words": list(vocabulary.words), "length": vocabulary.length} if vocabulary else None,
        "units": {ACTIONS: "as the demos' action rows", "age": "frames since the episode began, up to the window"},
        "inputs": inputs,
        "outputs": _described(graph.outputs, answer),
        "state": [entry for entry in inputs if entry["name"].startswith("state.")],
        "versions": {name: version(name) for name in ("robopolicy", "torch")},
    }


def _described(names: Sequence[str], tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    described = []
    for name, tensor in zip(names, tensors, strict=True):
        shape: list[Any] = list(tensor.shape)
        shape[1 if "state." in name else 0] = "batch"
        described.append({"name": name, "shape": shape, "dtype": str(tensor.dtype).removeprefix("torch.")})
    return described


def _require_exportable(policy: ChunkPolicy) -> None:
    if not policy.encoder.exportable:
        raise ExportError(
            "encoder transformers: a backbone isn't exported; encode its tokens beside the graph and train on them "
            "(--encoder.kind precomputed)"
        )
    if policy.text is not None and not isinstance(policy.text, VocabularyText):
        raise ExportError("--text.kind sentence: a sentence model isn't exported; train with --text.kind vocabulary")


class Reference:
    """Torch's actions for sequences of observations; the actions of exported graphs are compared with them.

    Args:
        policy: the policy in torch.
        runs: (batch size, consecutive observations with that batch axis) of each sequence; the memory starts empty.
    """

    def __init__(self, policy: ChunkPolicy, runs: Sequence[tuple[int, Sequence[dict[str, Any]]]]) -> None:
        self.runs = runs
        self._columns = list(policy.action_spec.arm_columns)
        self._range = np.maximum(2 * policy.action_normalizer.arm_scale.numpy(), 1e-6)
        self._expected = []
        for batch, observations in runs:
            state = policy.initial_state(batch)
            for observation in observations:
                actions, state = policy.act(observation, state)
                self._expected.append(actions.numpy()[..., self._columns])

    def largest_error(self, folder: Path) -> float:
        """Largest difference between an action of the export in `folder` and torch's, as a share of its column's range."""
        exported, expected, worst = runtime.load(folder), iter(self._expected), 0.0
        for batch, observations in self.runs:
            state = exported.initial_state(batch)
            for observation in observations:
                actions, state = exported.act(observation, state)
                difference = np.abs(actions[..., self._columns] - next(expected)) / self._range
                worst = float(np.maximum(worst, difference.max(initial=0.0)))  # NaN stays, unlike with max()
        return worst


def _random_runs(policy: ChunkPolicy) -> list[tuple[int, list[dict[str, Any]]]]:
    words = list(policy.vocabulary.words) if policy.vocabulary else []
    runs = []
    for batch in (1, 2, 5):
        observations = [_random_observation(policy, batch, seed=step) for step in range(2 * policy.window + 1)]
        for observation in observations:
            observation["instruction"] = [" ".join(words[:3]) if words else None] * batch
        runs.append((batch, observations))
    return runs


def _recorded_runs(policy: ChunkPolicy, frames: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """Up to 512 recorded frames as one batch of 8 sequences; empty if a key is missing or there are fewer than 8 frames."""
    steps = min(len(frames), FRAMES) // ROWS
    if not steps or any(key not in frame for frame in frames[: steps * ROWS] for key in policy.obs):
        return []
    observations = []
    for step in range(steps):
        rows = [frames[row * steps + step] for row in range(ROWS)]
        observation = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in policy.obs}
        observations.append(observation | {"instruction": [row.get("instruction") for row in rows]})
    return [(ROWS, observations)]


def _random_observation(policy: ChunkPolicy, batch: int, seed: int) -> dict[str, Any]:
    """A random observation: low-dimensional keys are drawn around the demos' mean, images are noise."""
    rng = np.random.default_rng(seed)
    observation: dict[str, Any] = {}
    for key, spec in policy.obs.items():
        shape = (batch, *spec.shape)
        if spec.is_image:
            observation[key] = rng.integers(0, 256, shape, dtype=np.uint8)
            continue
        scaling = policy.scaling.normalizer(key)
        values = rng.normal(size=(batch, spec.width if scaling is None else scaling.width)).astype(np.float32)
        if scaling is not None:
            values = scaling.unnormalize(torch.from_numpy(values)).numpy()
        observation[key] = values.reshape(shape)
    return observation
