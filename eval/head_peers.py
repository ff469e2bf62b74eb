"""The ways in which a policy's LSTM is run elsewhere, written as what they do; peers of `bench_head.py`.

WindowRerun      RoboVLMs' policy head on the robot: keep the last W frames, run `nn.LSTM` over all of them every tick
CarriedStep      robomimic's and rsl_rl's rollout: one `nn.LSTM` step a tick from a carried state
OnnxStep         the same step by ONNX Runtime, in float32 or with its dynamic int8 quantization
"""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy import PolicyHead


def lstm_of(head: PolicyHead) -> nn.LSTM:
    """Torch's own LSTM with the head's weights."""
    cell = head.memory
    lstm = nn.LSTM(cell.input_size, cell.hidden_size, cell.num_layers, batch_first=True)
    lstm.load_state_dict(cell.state_dict())
    return lstm.eval()


class WindowRerun:
    """Each tick, the whole window of frames again from a zero state."""

    def __init__(self, head: PolicyHead) -> None:
        self.head = head
        self.lstm = lstm_of(head)
        self.frames: list[Tensor] = []

    def __call__(self, tokens: Tensor) -> Tensor:
        """Arm (B, K, A) at the newest frame (B, N, D)."""
        self.frames = [*self.frames, self.head.pool(tokens)][-self.head.window :]
        hidden, _ = self.lstm(torch.stack(self.frames, dim=1))
        return self.head.action_head.decode(hidden[:, -1]).arm


class CarriedStep:
    """Each tick, one step from the state that the last one left."""

    def __init__(self, head: PolicyHead) -> None:
        self.head = head
        self.lstm = lstm_of(head)
        self.state: tuple[Tensor, Tensor] | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Arm (B, K, A) at the newest frame (B, N, D)."""
        hidden, (h, c) = self.lstm(self.head.pool(tokens)[:, None], self.state)
        self.state = h.detach(), c.detach()
        return self.head.action_head.decode(hidden[:, -1]).arm


class OnnxStep:
    """The recurrent step alone by ONNX Runtime on one thread, states as inputs and outputs."""

    def __init__(self, head: PolicyHead, int8: bool = False) -> None:
        import onnx
        import onnxruntime

        self.sizes = head.memory.num_layers, head.memory.hidden_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        with TemporaryDirectory() as folder:
            path = Path(folder) / "step.onnx"
            onnx.save(_onnx_step(head), path)
            if int8:
                path = _quantized(path)
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        layers, hidden = self.sizes
        self.state = {
            f"{kind}{layer}": np.zeros((1, 1, hidden), np.float32) for layer in range(layers) for kind in "hc"
        }

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Hidden vector of one frame (1, 1, P)."""
        hidden, *state = self.session.run(None, {"x": frame, **self.state})
        self.state = dict(zip(self.state, state, strict=True))
        return hidden


def _onnx_step(head: PolicyHead) -> "onnx.ModelProto":
    """One step of the head's LSTM as ONNX operators; gates i, o, f, g there, i, f, g, o here."""
    from onnx import TensorProto, helper, numpy_helper

    def reordered(weight: Tensor) -> np.ndarray:
        i, f, g, o = weight.detach().chunk(4)
        return torch.cat([i, o, f, g]).numpy()

    cell = head.memory
    inputs, outputs, nodes, weights = [], [], [], []
    below = "x"
    for layer in range(cell.num_layers):
        weight_ih, weight_hh, bias_ih, bias_hh = (reordered(w) for w in cell.layer_weights(layer))
        bias = np.concatenate([bias_ih, bias_hh])
        for name, value in {"W": weight_ih, "R": weight_hh, "B": bias}.items():
            weights.append(numpy_helper.from_array(value[None], f"{name}{layer}"))
        names = [f"{name}{layer}" for name in ("W", "R", "B")]
        states = [f"h{layer}", f"c{layer}"]
        after = [f"h{layer}_after", f"c{layer}_after"]
        nodes.append(
            helper.make_node("LSTM", [below, *names, "", *states], [f"y{layer}", *after], hidden_size=cell.hidden_size)
        )
        nodes.append(helper.make_node("Squeeze", [f"y{layer}", "axis"], [f"out{layer}"]))
        below = f"out{layer}"
        shape = [1, 1, cell.hidden_size]
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in states]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in after]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    frame = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, cell.input_size])
    hidden = helper.make_tensor_value_info(below, TensorProto.FLOAT, [1, 1, cell.hidden_size])
    graph = helper.make_graph(nodes, "step", [frame, *inputs], [hidden, *outputs], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _quantized(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(path, prepared)
        quantize_dynamic(prepared, quantized, weight_type=QuantType.QInt8)
    return quantized
