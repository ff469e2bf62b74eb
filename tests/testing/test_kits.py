"""The shipped conformance kits refuse components that break one promise."""

import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robopolicy import components
from robopolicy.control.execution import ExecutionOptions
from robopolicy.model.action_heads.regression import RegressionHead, RegressionOptions
from robopolicy.model.encoders import EncoderInputs, Encoding, TokenEncoder
from robopolicy.model.memories.lstm import LSTMMemory, LSTMOptions
from robopolicy.model.poolings.mean import MeanOptions, MeanPooling
from robopolicy.model.texts import TextTokens
from robopolicy.model.texts.vocabulary import VocabularyOptions, VocabularyText
from robopolicy.testing import action_head, augmentation, encoder, execution, loss, memory, pooling, text
from robopolicy.types import ArraySpec, Chunk


class LateMemory(LSTMMemory):
    """Reads the row of the age before the present one."""

    def step(self, frame, state):
        """See `Memory`."""
        _, after = super().step(frame, state)
        index = (state.age - 1).clamp(min=0)[..., None, None].expand(*state.age.shape, 1, self.hidden_size)
        return after.tensors[0][-1].gather(-2, index).squeeze(-2), after


class OverwritingMemory(LSTMMemory):
    """Writes into the state that it was given."""

    def step(self, frame, state):
        """See `Memory`."""
        hidden, after = super().step(frame, state)
        for old, new in zip(state.tensors, after.tensors, strict=True):
            old.copy_(new)
        return hidden, after


class BatchFirstMemory(LSTMMemory):
    """Declares its state with the batch axes first."""

    def state_shapes(self, batch):
        """See `Memory`."""
        return ((*batch, self.num_layers, self.window, self.hidden_size),) * 2


class TrustingMemory(LSTMMemory):
    """Takes whatever state it is given."""

    def step(self, frame, state):
        """See `Memory`."""
        return frame.new_zeros(*frame.shape[:-1], self.output_width), state


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (LateMemory, memory.a_stream_equals_the_zero_state_pass),
        (LateMemory, memory.gradients_of_a_stream_equal_those_of_the_window),
        (OverwritingMemory, memory.a_step_leaves_its_state_unchanged),
        (BatchFirstMemory, memory.the_state_has_the_batch_axes_after_the_first),
        (TrustingMemory, memory.a_state_of_another_memory_is_refused),
        (TrustingMemory, memory.unroll_from_the_initial_state_equals_forward),
    ],
)
def test_a_memory_that_breaks_a_promise_is_refused(kind, check):
    """Guards against: a check that passes whatever the memory does."""
    torch.manual_seed(0)
    options = LSTMOptions(window=4, hidden=8)
    check(LSTMMemory(options, 5), 5)
    with pytest.raises((AssertionError, RuntimeError)):
        check(kind(options, 5), 5)


class UnmaskedPooling(MeanPooling):
    """Averages invalid tokens too."""

    def pool_bin(self, tokens, valid):
        """See `BinPooling`."""
        return tokens.mean(dim=-2)


@pytest.mark.parametrize(
    "check", [pooling.invalid_tokens_have_no_influence, pooling.a_frame_without_a_valid_token_is_zero]
)
def test_a_pooling_that_breaks_a_promise_is_refused(check):
    """Guards against: a check that passes whatever the pooling does."""
    check(MeanPooling(MeanOptions(), 8), 5, 8)
    with pytest.raises(AssertionError):
        check(UnmaskedPooling(MeanOptions(), 8), 5, 8)


class PaddedHead(RegressionHead):
    """Divides its losses by the padded count."""

    def losses(self, hidden, labels, valid):
        """See `ActionHead`."""
        share = valid.float().mean()
        return {name: value * share for name, value in super().losses(hidden, labels, valid).items()}


class UnseededHead(RegressionHead):
    """Adds noise that is not the generator's."""

    def decode(self, hidden, *, generator=None, prefix=None):
        """See `ActionHead`."""
        chunk = super().decode(hidden, generator=generator)
        return Chunk(0.5 * chunk.arm + 0.1 * torch.rand_like(chunk.arm), chunk.gripper_logit)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (PaddedHead, action_head.invalid_labels_have_no_influence),
        (UnseededHead, action_head.samples_come_from_the_generator),
        (UnseededHead, action_head.a_prefix_is_used_or_refused),
    ],
)
def test_an_action_head_that_breaks_a_promise_is_refused(kind, check):
    """Guards against: a check that passes whatever the head does."""
    options = RegressionOptions(chunk=2, widths=(8,))
    check(lambda action: RegressionHead(options, 16, action), 16)
    with pytest.raises(AssertionError):
        check(lambda action: kind(options, 16, action), 16)


class FirstKeyEncoder(TokenEncoder):
    """One token of the first key alone, without the instruction, scaled by the batch's largest entry."""

    def __init__(self, inputs: EncoderInputs) -> None:
        super().__init__()
        self.key, width = next(iter(inputs.key_widths.items()), ("", 1))
        self.token_width, self.token_count = 4, 1 + inputs.text_tokens
        self.project = nn.Linear(width, 4)
        self.idle = nn.Linear(4, 4)

    def forward(self, obs, text):
        """See `TokenEncoder`."""
        tokens = self.project(obs[self.key] / obs[self.key].abs().max())[..., None, :]
        if text is not None:
            words = text.tokens.expand(*tokens.shape[:-2], *text.tokens.shape[-2:])
            tokens = torch.cat([tokens, words], dim=-2)
        return Encoding(tokens, None, {})


def read_words(instructions) -> TextTokens:
    """Two learned-looking words for each instruction."""
    words = torch.stack([torch.full((2, 4), float(len(instruction))) for instruction in instructions])
    return TextTokens(words, torch.ones(len(instructions), 2, dtype=torch.bool), words.mean(dim=1))


@pytest.mark.parametrize(
    "check",
    [
        encoder.a_frame_gives_the_same_tokens_in_any_batch,
        encoder.the_instruction_reaches_other_tokens_than_its_own,
        encoder.every_weight_is_trained,
        encoder.every_observation_is_used_or_refused,
        encoder.an_observation_without_its_input_is_refused,
    ],
)
def test_an_encoder_that_breaks_a_promise_is_refused(check):
    """Guards against: a check that passes whatever the encoder does."""
    case = encoder.EncoderCase(FirstKeyEncoder, {"pose": ArraySpec((3,)), "gripper": ArraySpec((1,))}, read_words)
    with pytest.raises(AssertionError):
        check(case)


class CountingPadding(nn.Module):
    """A loss whose mean includes the frames beyond the demo."""

    def __init__(self, context):
        super().__init__()
        self.predict = nn.Linear(context.pooled_width, context.arm_width)

    def forward(self, inputs):
        """See the family `loss`."""
        wanted = torch.as_tensor(inputs.batch.target)[:, :, 0, :3]
        return (self.predict(inputs.pooled) - wanted).square().mean()


class Idle(CountingPadding):
    """A loss that reaches neither its weights nor the policy."""

    def forward(self, inputs):
        """See the family `loss`."""
        return super().forward(inputs).detach().requires_grad_()


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (CountingPadding, loss.frames_beyond_the_demo_have_no_influence),
        (CountingPadding, loss.without_a_real_frame_it_is_zero),
        (Idle, loss.every_weight_is_trained),
    ],
)
def test_a_broken_loss_is_found(kind, check):
    """Guards against: a kit that passes a loss which padding changes."""
    with pytest.raises(AssertionError):
        check(kind)


class ForgetfulText(VocabularyText):
    """Reads every instruction as the first one of its batch."""

    def prepare(self, instructions):
        """See `Text`."""
        prepared = super().prepare(instructions)
        return prepared[:1].expand_as(prepared)


class UnmaskedText(VocabularyText):
    """Marks padding as words."""

    def forward(self, prepared):
        """See `Text`."""
        read = super().forward(prepared)
        return read._replace(valid=torch.ones_like(read.valid))


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (ForgetfulText, text.an_instruction_reads_the_same_in_any_batch),
        (ForgetfulText, text.instructions_differ),
        (UnmaskedText, text.no_instruction_is_masked),
    ],
)
def test_a_text_model_that_breaks_a_promise_is_refused(kind, check):
    """Guards against: a check that passes whatever the text model does."""
    with pytest.raises(AssertionError):
        check(lambda inputs: kind(VocabularyOptions(), inputs))


class Restless:
    """Changes images frame by frame, with numbers that no seed determines, in the batch that it is given."""

    def __init__(self, inputs):
        self.calls = 0

    def __call__(self, batch):
        """See the family `augmentation`."""
        self.calls += 1
        images = batch.obs["front"]
        images += torch.arange(images.shape[1], dtype=torch.uint8)[:, None, None, None] + time.time_ns() % 251
        batch.target[:] = 0.0
        return batch


@pytest.mark.parametrize(
    "check",
    [
        augmentation.the_given_batch_is_not_written_to,
        augmentation.draws_follow_the_seed,
        augmentation.images_of_a_segment_change_alike,
        augmentation.nothing_to_change_is_refused,
    ],
)
def test_an_augmentation_that_breaks_a_promise_is_refused(check):
    """Guards against: a check that passes whatever the augmentation does."""
    with pytest.raises(AssertionError):
        check(Restless)


@dataclass(frozen=True)
class EagerOptions(ExecutionOptions):
    """Options of a broken strategy."""


class Eager:
    """Adds the batch's mean of the chunk to the plan, in place, frozen steps included."""

    def __init__(self, options, chunk, control_dt):
        self.frozen = 2

    def merge(self, plans):
        """See `Strategy`."""
        plans.old.add_(plans.new.mean(0))
        return plans.old, plans.count + 1


@pytest.mark.parametrize(
    "check", [check for check in execution.CHECKS if check is not execution.frozen_steps_leave_room_for_a_new_plan]
)
def test_a_strategy_that_breaks_a_promise_is_refused(check, monkeypatch):
    """Guards against: a check that passes whatever the strategy does."""
    monkeypatch.setattr("robopolicy.components._registered", dict(components._registered))
    monkeypatch.setattr("robopolicy.components._by_options", dict(components._by_options))
    components.register("execution", "eager", EagerOptions)(Eager)
    with pytest.raises(AssertionError):
        check(EagerOptions())
