"""The encoder `pixels`: the instruction steers what it attends to."""

import torch

from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.encoders.pixels import PixelsEncoder, PixelsOptions
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.model.texts.vocabulary import VocabularyOptions, VocabularyText
from robopolicy.types import ArraySpec

INSTRUCTIONS = ["lift the red cube", "lift the blue cube"]


def scenes(count):
    """Images with a red and a blue square of 4 pixels, which one is named, and its position in [-1, 1]."""
    images = torch.full((count, 32, 32, 3), 120, dtype=torch.uint8)
    corners = torch.randint(0, 29, (count, 2, 2))
    for row, (red, blue) in enumerate(corners.tolist()):
        for (x, y), color in ((red, (220, 30, 30)), (blue, (30, 30, 220))):
            images[row, y : y + 4, x : x + 4] = torch.tensor(color, dtype=torch.uint8)
    which = torch.arange(count) % 2
    return images, which, corners[torch.arange(count), which] / 14.0 - 1


def test_it_learns_where_the_named_object_is():
    """Guards against: a prediction that the instruction does not steer, or that can't locate anything."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of(INSTRUCTIONS)
    text = VocabularyText(VocabularyOptions(), TextInputs(vocabulary, 16))
    inputs = EncoderInputs({"front": ArraySpec((32, 32, 3), "uint8")}, 16, vocabulary.length)
    encoder = PixelsEncoder(PixelsOptions(width=16, hidden=32, predict=2), inputs)
    optimizer = torch.optim.Adam([*encoder.parameters(), *text.parameters()], lr=5e-3)
    ids = vocabulary.encode(INSTRUCTIONS)
    images, which, place = scenes(512)

    def locate(images, which):
        return encoder({"front": images}, text(ids[which])).predictions["attended"]

    for _ in range(250):
        batch = torch.randint(0, 512, (64,))
        loss = (locate(images[batch], which[batch]) - place[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, which, place = scenes(128)
    with torch.no_grad():
        error = (locate(images, which) - place).square().mean()
        swapped = (locate(images, 1 - which) - place).square().mean()
    assert error < 0.05
    assert swapped > 5 * error
