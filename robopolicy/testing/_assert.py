"""Assertions with messages of their own, since only test files get pytest's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, TypeVar

import jaxtyping
import torch
from torch import Tensor, nn

Made = TypeVar("Made")


def require(holds: Any, message: str) -> None:
    """Raise AssertionError with this message unless `holds`."""
    if not holds:
        raise AssertionError(message)


def require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Refuse tensors of other shapes, or that differ by more than `tolerance` times the largest expected value (at least 1)."""
    require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    if not found.numel():
        return
    tolerance *= max(1.0, expected.abs().max().item())
    difference = (found - expected).abs().max().item()
    require(difference <= tolerance, f"{what}: differs by {difference:.2e}, expected at most {tolerance:.0e}")


def require_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Refuse tensors that are not equal bit for bit."""
    require(torch.equal(found, expected), f"{what}: not equal bit for bit")


def require_error(call: Callable[[], Any], what: str) -> None:
    """Refuse a call that does not raise ValueError."""
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what}: expected a ValueError, got none")


def random_like(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers from this generator."""
    return torch.randn(*shape, generator=generator)


def generator(seed: int = 0) -> torch.Generator:
    """A new generator, so that a check neither reads nor changes the global seed."""
    return torch.Generator().manual_seed(seed)


def seeded(make: Callable[..., Made], *arguments: Any, seed: int = 0) -> Made:
    """What `make(*arguments)` gives with torch's global generator seeded; the generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*arguments)


def module_of(part: Any) -> nn.Module:
    """The component itself; AssertionError if it is not an `nn.Module`."""
    require(isinstance(part, nn.Module), f"{type(part).__name__} is not an nn.Module")
    return part


def require_trained(module: nn.Module) -> None:
    """Refuse a module with a trainable weight that got no gradient."""
    idle = [name for name, weight in module.named_parameters() if weight.requires_grad and weight.grad is None]
    require(not idle, f"weights without a gradient: {', '.join(idle)}")


def require_finite_gradients(module: nn.Module, when: str = "") -> None:
    """Refuse a weight whose gradient is NaN or infinite."""
    for name, weight in module.named_parameters():
        require(weight.grad is None or weight.grad.isfinite().all(), f"gradient of {name} is not finite{when}")


@contextmanager
def evaluating(part: Any) -> Iterator[None]:
    """The component in eval mode, and in its former mode afterwards."""
    module = module_of(part)
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def symbolic_shapes() -> Iterator[None]:
    """Switch jaxtyping's checks off within the context: tracing replaces sizes by symbols, which they refuse."""
    checked = not jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", not checked)


def require_export(module: nn.Module, inputs: tuple[Any, ...], more: tuple[Any, ...], axes: tuple[int, ...]) -> None:
    """Refuse a module whose exported graph, made for one batch size, differs from it at another.

    Args:
        module: takes tensors, or mappings of tensors, and returns tensors.
        inputs: the example that the graph is made from.
        more: inputs of another batch size.
        axes: where the batch axis of each input is.
    """
    episodes = torch.export.Dim("episodes", min=1, max=64)
    shapes = tuple(_dynamic(value, {axis: episodes}) for value, axis in zip(inputs, axes, strict=True))
    with torch.no_grad(), symbolic_shapes():
        graph = torch.export.export(module, inputs, dynamic_shapes=_arguments(module, shapes)).module()
        for index, (found, expected) in enumerate(zip(graph(*more), module(*more), strict=True)):
            require_close(found, expected, 1e-5, f"exported graph, output {index}")


def _arguments(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shapes as `torch.export` takes them: nested once more for a `forward(*tensors)`."""
    kinds = [parameter.kind for parameter in signature(module.forward).parameters.values()]
    return (shapes,) if Parameter.VAR_POSITIONAL in kinds else shapes


def _dynamic(value: Any, shape: dict[int, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _dynamic(item, shape) for key, item in value.items()}
    return shape
