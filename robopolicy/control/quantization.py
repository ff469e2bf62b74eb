"""Int8 weights in an exported graph, in as many layers as keep the error of the actions within a tolerance."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from robopolicy.control.runtime import GRAPH, MANIFEST, ExportError
from robopolicy.files import replacing

PRODUCTS = ("MatMul", "Gemm")
"""ONNX operators that can be quantized."""


def quantize(folder: Path, measure: Callable[[Path], float], tolerance: float) -> tuple[list[str], float]:
    """Replace the graph in an exported folder by one with int8 weights; those of sensitive layers stay float.

    Weights get one scale per column; activations are quantized dynamically. If the error with all layers quantized
    exceeds the tolerance, each layer is measured alone, and the most sensitive ones stay float, one after another, until
    the remaining error is within it.

    Args:
        folder: the exported folder.
        measure: an exported folder -> the largest difference from torch's actions, as a share of the action's range.
        tolerance: largest difference that is accepted.

    Returns:
        Names of the layers that stayed float, and the difference that remains.

    Raises:
        ExportError: no layer can be quantized within the tolerance.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        shutil.copyfile(folder / MANIFEST, scratch / MANIFEST)
        plain, prepared = scratch / "plain.onnx", scratch / "prepared.onnx"
        model = onnx.load(folder / GRAPH)
        del model.graph.value_info[:]  # the exporter's shapes are stale where it has transposed weights
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        layers = [node.name for node in onnx.load(prepared).graph.node if node.op_type in PRODUCTS]

        def error_with(quantized: Sequence[str]) -> float:
            quantize_dynamic(
                prepared,
                scratch / GRAPH,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=list(quantized),
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
            return measure(scratch)

        kept, error = _layers_to_keep(layers, error_with, tolerance)
        with replacing(folder / GRAPH) as temporary:
            shutil.copyfile(scratch / GRAPH, temporary)
    return kept, error


def _layers_to_keep(
    layers: Sequence[str], error_with: Callable[[Sequence[str]], float], tolerance: float
) -> tuple[list[str], float]:
    """Names of the layers that must stay float for an error within the tolerance, sorted, and the error that remains."""
    error, kept = error_with(layers), list[str]()
    if error <= tolerance:
        return kept, error
    alone = {layer: error_with([layer]) for layer in layers}
    ranked = sorted(layers, key=alone.__getitem__)  # the most sensitive last
    while error > tolerance:
        kept.append(ranked.pop())
        if not ranked:
            raise ExportError(
                f"--int8: each of {len(layers)} layers differs from torch by {min(alone.values()):.2g} of an action's range "
                f"or more, at most {tolerance:g} allowed; raise --int8-tolerance or export in float32"
            )
        error = error_with(ranked)
    return sorted(kept), error
