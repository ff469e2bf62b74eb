"""Instruction -> tokens."""

import logging
import math
import sys

import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.model.texts import PAD, UNKNOWN, TextInputs, Vocabulary
from tests.making import make
from tests.tiny_backbones import save_sentence_model

INSTRUCTIONS = [
    "Lift the red cube.",
    "put the red cube on the blue cube, please",
    "put the blue cube on the red cube, please",
]


def test_words_are_read_without_case_and_punctuation():
    """Guards against: 'Red' and 'red.' as two words."""
    vocabulary = Vocabulary.of(INSTRUCTIONS)
    assert torch.equal(*vocabulary.encode(["lift the red cube", "LIFT, the Red cube!"]))
    assert vocabulary.length == 9


def test_no_instruction_is_all_padding():
    """Guards against: a demo without an instruction that gets another's."""
    assert (Vocabulary.of(INSTRUCTIONS).encode([None, ""]) == PAD).all()


def test_an_unknown_word_is_reported_once(caplog):
    """Guards against: a paraphrase that the policy cannot read and that looks like a bad policy."""
    vocabulary = Vocabulary.of(INSTRUCTIONS)
    with caplog.at_level(logging.WARNING):
        ids = vocabulary.encode(["lift the purple cube"])
        vocabulary.encode(["lift the purple cube"])
    assert ids[0, 2] == UNKNOWN
    assert [record.getMessage() for record in caplog.records] == [
        "instruction word 'purple' is not in the training instructions: unknown"
    ]


def test_words_beyond_the_length_are_reported(caplog):
    """Guards against: a silent cut, which drops the object that comes last."""
    vocabulary = Vocabulary.of(["a b"])
    with caplog.at_level(logging.WARNING):
        ids = vocabulary.encode(["a b a b a b a b a b"])
    assert ids.shape == (1, 8)
    assert "comes after the 8 words that this policy reads: cut off" in caplog.text


def test_the_order_of_words_changes_the_sentence_vector():
    """Guards against: 'red on blue' and 'blue on red' read as the same bag of words."""
    torch.manual_seed(0)
    model = make("text", "vocabulary", TextInputs(Vocabulary.of(INSTRUCTIONS), 16))
    seen = model(model.prepare(INSTRUCTIONS))
    assert (seen.sentence[1] - seen.sentence[2]).abs().max() > 1e-2


def test_padding_changes_nothing_and_no_instruction_is_zero():
    """Guards against: a mean over positions instead of words."""
    torch.manual_seed(0)
    model = make("text", "vocabulary", TextInputs(Vocabulary.of(INSTRUCTIONS), 16))
    seen = model(model.prepare([INSTRUCTIONS[0], None]))
    assert seen.valid.sum(dim=-1).tolist() == [4, 0]
    lift = torch.tensor([math.log(3), 0.0, 0.0, 0.0])[:, None]
    torch.testing.assert_close(seen.sentence[0], (lift * seen.tokens[0, :4]).sum(dim=0) / lift.sum())
    assert (seen.sentence[1] == 0).all()


def test_words_that_all_instructions_share_weigh_nothing():
    """Guards against: six shared words of eight that hide the two that matter, so that one object is selected for all."""
    vocabulary = Vocabulary.of(["lift the red cube", "lift the blue cube"])
    assert dict(zip(vocabulary.words, vocabulary.weights, strict=True)) == {
        "blue": pytest.approx(math.log(2)),
        "cube": 0.0,
        "lift": 0.0,
        "red": pytest.approx(math.log(2)),
        "the": 0.0,
    }
    assert Vocabulary.of(["lift it"]).weights == (0.0, 0.0)


def test_the_longest_instruction_is_kept():
    """Guards against: a prompt length that the training instructions do not fit into."""
    assert Vocabulary.of(INSTRUCTIONS).longest == "put the blue cube on the red cube, please"
    assert Vocabulary.of([]).longest == ""


def test_no_text_builds_nothing():
    """Guards against: an unconditioned baseline that sees the instruction after all."""
    assert make("text", "none", TextInputs(Vocabulary.of(INSTRUCTIONS), 8)) is None


@pytest.fixture
def sentence_model(tmp_path, monkeypatch):
    """A tiny BERT with a tokenizer, saved to disk; no test may look for a model on the hub."""
    pytest.importorskip("transformers", reason="the extra text isn't installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return str(save_sentence_model(tmp_path / "bert"))


def test_sentence_vectors_are_means_over_the_words(sentence_model):
    """Guards against: a mean over padding, or vectors that depend on the other sentences of the batch."""
    model = make("text", "sentence", TextInputs(Vocabulary.of([]), 8), model=sentence_model)
    lift, long, nothing = model.prepare(["lift", "lift the red cube", None])
    assert lift.norm() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(lift, model.prepare(["lift"])[0], atol=1e-5, rtol=1e-5)
    assert (lift - long).abs().max() > 1e-3
    seen = model(torch.stack([lift, nothing]))
    assert seen.tokens.shape == (2, 1, 8)
    assert seen.valid.tolist() == [[True], [False]]
    assert (seen.sentence[1] == 0).all()


def test_a_sentence_model_is_not_part_of_the_weights(sentence_model):
    """Guards against: a policy file that carries a frozen sentence model, or an optimizer that trains it."""
    model = make("text", "sentence", TextInputs(Vocabulary.of([]), 8), model=sentence_model)
    model.prepare(["lift"])
    assert sorted(name for name, _ in model.named_parameters()) == ["project.bias", "project.weight"]


def test_a_sentence_model_that_is_missing_is_named(monkeypatch):
    """Guards against: a traceback from the hub client that hides the typo."""
    inputs = TextInputs(Vocabulary.of([]), 8)
    with pytest.raises(ConfigError, match=r"give --text\.model"):
        make("text", "sentence", inputs)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'robopolicy\[vlm\]'"):
        make("text", "sentence", inputs, model="somewhere")


def test_an_unknown_sentence_model_is_one_line(sentence_model):
    """Guards against: a traceback from the hub client that hides the typo."""
    with pytest.raises(ConfigError, match=r"--text\.model nowhere/such-a-model is neither a folder"):
        make("text", "sentence", TextInputs(Vocabulary.of([]), 8), model="nowhere/such-a-model")


def test_a_prompt_needs_an_encoder_that_reads_it():
    """Guards against: token numbers of a backbone that reach an encoder without one."""
    with pytest.raises(ConfigError, match="needs an encoder with a backbone that reads it"):
        make("text", "prompt", TextInputs(Vocabulary.of(INSTRUCTIONS), 8))


def test_a_template_without_a_place_for_the_instruction_is_refused():
    """Guards against: one and the same prompt for every task."""
    with pytest.raises(ConfigError, match="has no place for the instruction"):
        make("text", "prompt", TextInputs(Vocabulary.of(INSTRUCTIONS), 8), template="do it")
