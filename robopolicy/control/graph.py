"""One tick of a policy as a function of plain tensors, which can be traced: memory in, memory out."""

import torch
from torch import Tensor, nn

from robopolicy.control.runtime import ACTIONS, AGE, NOISE, TEXT
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import History, MemoryState


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
        """(K, A) the noise without a generator, for an action head that turns noise into actions; None for others."""
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
        values: list[Tensor] = []
        for spec in self.policy.obs.values():
            shape = (batch, *spec.shape)
            picture = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            values.append(picture if spec.is_image else torch.randn(shape, generator=generator))
        if self.policy.text is not None:
            text = self.policy.text.prepare([None] * batch)
            values.append(torch.randint(0, 2, text.shape, generator=generator, dtype=text.dtype))
        if self.noise is not None:
            values.append(torch.randn((batch, *self.noise.shape), generator=generator))
        state = self.policy.initial_state(batch)
        return (*values, state.age, *state.tensors)
