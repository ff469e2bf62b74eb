"""Functions of tensors, captured as a CUDA graph on a GPU."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
WARM_UPS = 3
"""Warm-up calls on a side stream before the capture, as the torch documentation recommends."""


class Captured:
    """A function of tensors whose shapes and types never change; on a GPU captured once as a graph and replayed.

    Elsewhere it is the function itself. The function must not synchronize with the device or branch on the tensors' values;
    one that can't be captured is reported once, and runs without a graph.

    Args:
        function: Tensors in, tensors out.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs, copied."""
        if not inputs[0].is_cuda:
            return self._function(*inputs)
        self._calls += 1
        if self._calls <= WARM_UPS:
            return self._beside(*inputs)
        if self._calls == WARM_UPS + 1:
            self._capture(inputs)
        if self._graph is None:
            return self._function(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def _beside(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        present, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(present)
        with torch.cuda.stream(beside):
            outputs = self._function(*inputs)
        present.wait_stream(beside)
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:
            LOG.warning("not captured as a CUDA graph, and slower for it: %s", str(error).splitlines()[0])
        else:
            self._graph = graph
