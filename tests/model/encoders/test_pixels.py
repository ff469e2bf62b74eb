"""The `pixels` encoder: the instruction steers where it looks."""

import torch

from robopolicy.model.encoders.pixels import PixelsEncoder
from robopolicy.model.text import Vocabulary, VocabularyText

INSTRUCTIONS = ["lift the red cube", "lift the blue cube"]


def scenes(count):
    """Pictures with a red and a blue square of 4 pixels, which one is named, and its place in [-1, 1]."""
    pictures = torch.full((count, 32, 32, 3), 120, dtype=torch.uint8)
    corners = torch.randint(0, 29, (count, 2, 2))
    for row, (red, blue) in enumerate(corners.tolist()):
        for (x, y), color in ((red, (220, 30, 30)), (blue, (30, 30, 220))):
            pictures[row, y : y + 4, x : x + 4] = torch.tensor(color, dtype=torch.uint8)
    which = torch.arange(count) % 2
    return pictures, which, corners[torch.arange(count), which] / 14.0 - 1


def test_it_learns_where_the_named_object_is():
    """Vision comes late: without this the arm learns when to move and not whereto."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of(INSTRUCTIONS)
    text = VocabularyText(vocabulary, 16)
    encoder = PixelsEncoder({"front": (32, 32)}, {}, 16, 32, 16, vocabulary.length, {"target_pos": 2})
    optimizer = torch.optim.Adam([*encoder.parameters(), *text.parameters()], lr=5e-3)
    ids = vocabulary.encode(INSTRUCTIONS)
    pictures, which, place = scenes(512)

    def told_where(pictures, which):
        return encoder({"front": pictures}, text(ids[which])).predictions["where"]

    for _ in range(250):
        batch = torch.randint(0, 512, (64,))
        loss = (told_where(pictures[batch], which[batch]) - place[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, which, place = scenes(128)
    with torch.no_grad():
        error = (told_where(pictures, which) - place).square().mean()
        swapped = (told_where(pictures, 1 - which) - place).square().mean()
    assert error < 0.05
    assert swapped > 5 * error
