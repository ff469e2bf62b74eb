"""Clients' names, and images of other sizes."""

import numpy as np
import pytest

from robopolicy.components import kinds
from robopolicy.control.serving.mapping import KeyMapping, KeySource, place_image, resize

SOURCE = KeySource(("front",))


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (31, 57), (480, 640)])
def test_resizing_equals_pillows_bilinear(size):
    """Guards against: a policy that sees another image than with openpi's client, which resizes with Pillow."""
    pillow = pytest.importorskip("PIL.Image")
    source = image(120, 160)
    expected = np.asarray(pillow.fromarray(source).resize(size[::-1], pillow.Resampling.BILINEAR))
    assert np.abs(resize(source, *size).astype(int) - expected).max() <= 1


def test_a_wide_picture_is_padded_and_keeps_its_aspect():
    """Guards against: stretched images, which show another world than the training's."""
    placed = place_image(np.full((60, 120, 3), 200, np.uint8), 64, 64, SOURCE)
    assert placed.shape == (64, 64, 3)
    assert (placed[:16] == 0).all() and (placed[48:] == 0).all()  # noqa: PT018
    assert (placed[16:48] == 200).all()


def test_a_picture_of_the_right_size_is_left_alone():
    """Guards against: images blurred by resampling to the size they have."""
    source = image(64, 64)
    np.testing.assert_array_equal(place_image(source, 64, 64, SOURCE), source)


def test_flips_turn_a_picture_the_right_way_up():
    """Guards against: images upside down, as OpenGL's, or rotated, as LIBERO's users keep them."""
    source = image(8, 8)
    upright = place_image(source, 8, 8, KeySource(("a",), flip="vertical"))
    np.testing.assert_array_equal(upright, source[::-1])
    np.testing.assert_array_equal(place_image(source, 8, 8, KeySource(("a",), flip="turn")), source[::-1, ::-1])


def test_every_preset_reads():
    """Guards against: a preset with a typo, found by the first user of that robot."""
    assert set(kinds("key_mapping")) == {"aloha", "droid", "libero", "native", "robomimic", "robosuite"}
    for name in kinds("key_mapping"):
        assert KeyMapping.read(name).name == name


def test_an_unknown_mapping_lists_what_there_is():
    """Guards against: a mistyped name on the command line whose error lists no choices."""
    with pytest.raises(ValueError, match=r"key_mapping 'aloh' is unknown; choose one of aloha, droid"):
        KeyMapping.read("aloh")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: {qpos: {form: state}}", "key 'qpos': expected `from: NAME`"),
        ("keys: {qpos: {from: state, layout: whc}}", "layout must be one of hwc, chw, got whc"),
        ("keys: {qpos: {from: state, columns: [3, 1]}}", r"columns is \[3, 1\]"),
        ("key: {}", "unknown option key; the options of a mapping are: name, instruction, keys"),
        ("keys: {qpos: {from: 5}}", "expected `from: NAME`"),
    ],
)
def test_a_mistake_in_a_mapping_file_is_named(tmp_path, text, words):
    """Guards against: a misspelled key that nobody reads: an observation that never arrives."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{words}"):
        KeyMapping.read(path)
