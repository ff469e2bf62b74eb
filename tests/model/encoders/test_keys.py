"""The encoder `keys`: what the instruction selects among the keys of a group."""

import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.encoders.keys import KeysEncoder, KeysOptions
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.model.texts.vocabulary import VocabularyOptions, VocabularyText
from robopolicy.types import ArraySpec

WIDTHS = {"ee_pose": 7, "cube_red": 3, "cube_blue": 3, "plate": 3, "qpos": 7}
OBS = {key: ArraySpec((width,)) for key, width in WIDTHS.items()}
CUBES = {"cube": ("cube_red", "cube_blue")}
INSTRUCTIONS = ["lift the red cube", "lift the blue cube"]


def make_encoder(groups=CUBES, with_text=True):
    torch.manual_seed(0)
    options = KeysOptions(width=8, hidden=16, groups=groups)
    return KeysEncoder(options, EncoderInputs(OBS, 8 if with_text else None, 8 if with_text else 0))


def frames(count):
    return {key: torch.randn(count, width) for key, width in WIDTHS.items()}


def test_only_declared_groups_are_selected_from():
    """Guards against: keys taken as instances of one thing because of their names."""
    assert make_encoder(groups={}).groups == ()
    encoder = make_encoder()
    assert encoder.groups == (("cube_red", "cube_blue"),)
    assert encoder.single == ("ee_pose", "plate", "qpos")
    choices = {"choice_0_cube": 2, "choice_1_cube": 2}
    assert encoder.prediction_widths == {"selected": 7 + 3 + 7 + 2 * 3, "sentence": 8, "keys_cube": 3, **choices}


def test_the_selection_starts_with_equal_shares():
    """Guards against: a selection that random initial weights decide, which training seldom reverses."""
    encoder = make_encoder()
    weights = encoder.selectors[0](torch.randn(5, 8))
    assert weights.shape == (5, 2, 2)
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))


def test_without_instruction_the_common_token_sees_every_key():
    """Guards against: a key that an unconditioned policy loses."""
    encoder = make_encoder(groups={}, with_text=False)
    seen = frames(2)
    before = encoder(seen, None).tokens[:, -1]
    for key in WIDTHS:
        after = encoder(seen | {key: seen[key] + 1}, None).tokens[:, -1]
        assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("groups", "with_text", "message"),
    [
        ({"cube": ("cube_red",)}, True, "'cube' has 1 keys; a group has two or more"),
        ({"cube": ("cube_red", "plate"), "dish": ("plate", "cube_blue")}, True, "names the key 'plate' twice"),
        ({"cube": ("cube_red", "cube_green")}, True, "the key 'cube_green' is not among the policy's keys: ee_pose, "),
        ({"cube": ("cube_red", "qpos")}, True, "must have one width, got cube_red 3, qpos 7"),
        (CUBES, False, "needs the instruction, which selects among the keys"),
    ],
)
def test_groups_that_can_t_be_used_are_refused(groups, with_text, message):
    """Guards against: a declared group that is silently ignored, or fails later as a shape error."""
    with pytest.raises(ConfigError, match=message):
        make_encoder(groups, with_text)


def test_it_learns_which_object_is_named_from_few_scenes():
    """Guards against: memorizing the training scenes, as a perceptron per object does with 60 of them."""
    encoder, vocabulary = make_encoder(), Vocabulary.of(INSTRUCTIONS)
    text = VocabularyText(VocabularyOptions(), TextInputs(vocabulary, 8))
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
        weights = encoder.selectors[0](text(ids).sentence)
    assert (weights[0, :, 0] > 0.9).any()
    assert (weights[1, :, 1] > 0.9).any()
