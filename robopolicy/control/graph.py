"""One tick of a policy as a function of plain tensors, which can be traced: memory in, memory out."""

from typing import cast

import torch
from torch import Tensor, nn

from robopolicy.control.runtime import ACTIONS, AGE, TEXT
from robopolicy.model.cells import gru_update, lstm_update
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.recurrence import Recurrence, RecurrentMemory
from robopolicy.model.streaming import History, MemoryState, shift_in_zero


class GraphPolicy(nn.Module):
    """One tick of a `ChunkPolicy` with plain tensors in and out, in the order of `inputs` and `outputs`."""

    history: History

    def __init__(self, policy: ChunkPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.history = policy.initial_state(1).history
        self.state_count = len(policy.initial_state(1).tensors)
        states = [f"state.{i}" for i in range(self.state_count)]
        self.inputs = [*policy.obs, *([TEXT] if policy.text is not None else []), AGE, *states]
        self.outputs = [ACTIONS, f"next.{AGE}", *(f"next.{name}" for name in states)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Actions (B, K, width) in the demos' units, age (B,) and states after this frame."""
        given = dict(zip(self.inputs, tensors, strict=True))
        encoding = self.policy.encode({key: given[key] for key in self.policy.obs}, given.get(TEXT))
        pooled = self.policy.head.pool(encoding.tokens, encoding.token_valid)
        before = MemoryState(self.history, given[AGE], tensors[len(tensors) - self.state_count :])
        hidden, after = step_memory(self.policy.head.rnn, pooled, before)
        rows = self.policy.action_normalizer.to_rows(self.policy.head.action_head(hidden))
        return rows, after.age, *after.tensors

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and types, with random content."""
        generator = torch.Generator().manual_seed(seed)
        values: list[Tensor] = []
        for spec in self.policy.obs.values():
            shape = (batch, *spec.shape)
            picture = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            values.append(picture if spec.is_image else torch.randn(shape, generator=generator))
        if self.policy.text is not None:
            text = self.policy.text.prepare([None] * batch)
            values.append(torch.randint_like(text, 0, 2, generator=generator))
        state = self.policy.initial_state(batch)
        return (*values, state.age, *state.tensors)


def step_memory(memory: nn.Module, frame: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
    """What `memory.step` does, without packed weights or anything else that can't be traced.

    Args:
        memory: a policy head's `rnn`.
        frame: (B, P) pooled.
        state: of B episodes.

    Returns:
        The hidden vector (B, H) and the state after the frame.
    """
    if not isinstance(memory, RecurrentMemory):
        return cast(Recurrence, memory).step(frame, state)
    update = lstm_update if memory.cell == "lstm" else gru_update
    windowed = memory.history == "window"
    before = state.tensors
    if windowed:
        before = tuple(shift_in_zero(rows) for rows in before)
    elif memory.history == "none":
        zeros = frame.new_zeros(memory.num_layers, frame.shape[0], memory.hidden_size)
        before = (zeros,) * memory.state_count
    inputs = frame[:, None] if windowed else frame
    layers = []
    for layer in range(memory.num_layers):
        weights = (getattr(memory, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        layers.append(update(inputs, tuple(tensor[layer] for tensor in before), *weights))
        inputs = layers[-1][0]
    if memory.history == "none":
        return inputs, state
    age = (state.age + 1).clamp(max=memory.window)
    after = tuple(torch.stack(parts) for parts in zip(*layers, strict=True))
    if windowed:
        row = (age - 1)[:, None, None].expand(-1, 1, memory.hidden_size)
        inputs = inputs.gather(1, row).squeeze(1)
    return inputs, MemoryState(memory.history, age, after)
