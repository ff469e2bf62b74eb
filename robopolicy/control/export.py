"""A policy as one ONNX graph, with the memory as explicit inputs and outputs.

Normalization, encoder, pooling, recurrence (staggered window included), action head and un-normalization are inside;
what remains outside is turning the instruction into word numbers, which `runtime.py` does in NumPy.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.control import runtime
from robopolicy.control.graph import GraphPolicy
from robopolicy.control.runtime import ACTIONS, FORMAT, GRAPH, MANIFEST, ONNX, ExportError
from robopolicy.control.spec import PolicySpec
from robopolicy.files import replacing, write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts.vocabulary import VocabularyText

TOLERANCE = 1e-4
"""Largest difference to torch that a float32 export may show, relative to each action column's range."""
EXAMPLE_BATCH = 3
"""Episodes of the example that is traced; an example of 1 would make the batch axis static."""


def export_policy(policy: ChunkPolicy, out: str | Path, int8: bool = False) -> Path:
    """Export a policy into the folder `out`: the graph and `manifest.json`.

    The graph is run against torch before it is kept, for batches of 1, 2 and 5 over twice the window.

    Args:
        policy: as `robopolicy.load_policy` returns it, on the CPU.
        out: made if it doesn't exist.
        int8: dynamic int8 weights in matrix products. The manifest says what it costs in accuracy.

    Raises:
        ExportError: the policy can't be exported, or the float32 graph differs from torch by more than 1e-4.
    """
    out = Path(out)
    _require_exportable(policy)
    graph = GraphPolicy(policy).eval()
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    with replacing(out / GRAPH) as temporary:
        _write_onnx(graph, temporary)
        if int8:
            _quantize(temporary)
    manifest = _manifest(graph, policy.spec, int8)
    write_file(out / MANIFEST, json.dumps(manifest, indent=1))
    error = _largest_error(policy, out)
    if not int8 and not error <= TOLERANCE:
        (out / MANIFEST).unlink()
        raise ExportError(f"{out}: the graph differs from torch by {error:.2g} of an action's range; nothing exported")
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
        node.meta.pop("stack_trace", None)  # paths of this machine
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
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not used
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
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


def _quantize(path: Path) -> None:
    """Int8 weights in the graph's matrix products, one scale per column; activations are quantized as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(path)
    del model.graph.value_info[:]  # the exporter's shapes are stale where it has transposed weights
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        plain, prepared = Path(scratch) / "plain.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        products = ["MatMul", "Gemm"]
        quantize_dynamic(prepared, path, products, weight_type=QuantType.QInt8, per_channel=True)


def _manifest(graph: GraphPolicy, spec: PolicySpec, int8: bool) -> dict[str, Any]:
    policy = graph.policy
    example = graph.example(EXAMPLE_BATCH)
    with torch.no_grad():
        answer = graph(*example)
    text = policy.text
    vocabulary = text.vocabulary if isinstance(text, VocabularyText) else None
    inputs, told = _described(graph.inputs, example), spec.to_dict()
    return {
        "format_version": FORMAT,
        "format": ONNX,
        "file": GRAPH,
        "int8": int8,
        "execution": told.pop("execution"),
        "spec": told,
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


def _largest_error(policy: ChunkPolicy, out: Path) -> float:
    """Largest difference of an action to torch's over episodes longer than the window, in shares of its column's range."""
    exported = runtime.load(out)
    words = list(policy.vocabulary.words) if policy.vocabulary else []
    scale = np.ones(policy.action_spec.width, np.float32)
    scale[list(policy.action_spec.arm_columns)] = np.maximum(2 * policy.action_normalizer.arm_scale.numpy(), 1e-6)
    worst = 0.0
    for batch in (1, 2, 5):
        state, reference = exported.initial_state(batch), policy.initial_state(batch)
        for step in range(2 * policy.window + 1):
            observation = _random_observation(policy, batch, seed=step)
            observation["instruction"] = [" ".join(words[:3]) if words else None] * batch
            actions, state = exported.act(observation, state)
            expected, reference = policy.act(observation, reference)
            difference = np.abs(actions - expected.numpy()) / scale
            worst = max(worst, float(difference[..., list(policy.action_spec.arm_columns)].max(initial=0.0)))
    return worst


def _random_observation(policy: ChunkPolicy, batch: int, seed: int) -> dict[str, Any]:
    """What the demos may have shown: scaled keys around their mean, pictures of noise."""
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
