"""The `keys` encoder: what the instruction names among keys that are alike."""

import torch

from robopolicy.model.encoders.keys import KeysEncoder
from robopolicy.model.text import Vocabulary, VocabularyText

WIDTHS = {"ee_pose": 7, "cube_red": 3, "cube_blue": 3, "plate": 3, "qpos": 7}
INSTRUCTIONS = ["lift the red cube", "lift the blue cube"]


def make_encoder(told=True):
    torch.manual_seed(0)
    return KeysEncoder(WIDTHS, width=8, hidden=16, text_width=8 if told else None, text_tokens=8 if told else 0)


def frames(count):
    return {key: torch.randn(count, width) for key, width in WIDTHS.items()}


def test_keys_are_alike_by_width_and_name():
    """Joint positions and a pose of seven numbers are no two objects to choose between."""
    encoder = make_encoder()
    assert encoder.groups == (("cube_red", "cube_blue"),)
    assert encoder.single == ("ee_pose", "plate", "qpos")


def test_it_starts_undecided():
    """A choice that is decided at random before training is seldom undone."""
    encoder = make_encoder()
    weights = encoder.choosers[0](torch.randn(5, 8))
    assert weights.shape == (5, 2, 2)
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))


def test_a_policy_that_is_told_nothing_sees_every_key():
    """Without an instruction there is nothing to choose by."""
    encoder = make_encoder(told=False)
    assert encoder.groups == ()
    seen = frames(2)
    before = encoder(seen, None).tokens[:, -1]
    for key in WIDTHS:
        after = encoder(seen | {key: seen[key] + 1}, None).tokens[:, -1]
        assert not torch.equal(after, before)


def test_it_learns_which_object_is_named_from_few_scenes():
    """With a perceptron per object it remembered 60 scenes and told nothing of the next."""
    encoder, vocabulary = make_encoder(), Vocabulary.of(INSTRUCTIONS)
    text = VocabularyText(vocabulary, 8)
    out = torch.nn.Linear(8, 3)
    learned = [*encoder.parameters(), *text.parameters(), *out.parameters()]
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    ids = vocabulary.encode(INSTRUCTIONS)

    def error(seen, which):
        named = torch.where(which[:, None] == 0, seen["cube_red"], seen["cube_blue"])
        return (out(encoder(seen, text(ids[which])).tokens[:, len(WIDTHS)]) - named).square().mean()

    scenes, which = frames(60), torch.arange(60) % 2
    for _ in range(300):
        optimizer.zero_grad()
        error(scenes, which).backward()
        optimizer.step()
    with torch.no_grad():
        assert error(frames(500), torch.arange(500) % 2) < 0.25
        weights = encoder.choosers[0](text(ids).sentence)
    assert (weights[0, :, 0] > 0.9).any()
    assert (weights[1, :, 1] > 0.9).any()
