"""Images in other forms than uint8 (height, width, 3): converted, or refused in one line."""

import h5py
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.demos.formats import convert, open_demos
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.images import as_image, image_form
from robopolicy.demos.rows import load_rows, row_types
from robopolicy.types import DemoFormatError

COLOR = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]
FORMS = {
    "grayscale": (GRAY, np.repeat(GRAY[..., None], 3, -1)),
    "grayscale, one channel": (GRAY[..., None], np.repeat(GRAY[..., None], 3, -1)),
    "channels first": (COLOR.transpose(0, 3, 1, 2), COLOR),
    "one channel first": (GRAY[:, None], np.repeat(GRAY[..., None], 3, -1)),
    "float": ((COLOR / 255).astype(np.float32), COLOR),
    "float, channels first": ((COLOR / 255).transpose(0, 3, 1, 2), COLOR),
    "color": (COLOR, COLOR),
}


@pytest.fixture(params=FORMS)
def file(request, tmp_path):
    """A demo file with images in one of the forms, and the images."""
    stored, expected = FORMS[request.param]
    with h5py.File(tmp_path / "a.hdf5", "w") as target:
        target["data/demo_0/actions"] = np.random.default_rng(1).normal(size=(6, 2))
        target["data/demo_0/obs/front"], target["data/demo_0/obs/qpos"] = stored, np.ones((6, 7))
    return tmp_path / "a.hdf5", expected


def test_images_of_every_form_are_read_alike(file, tmp_path):
    """Guards against: a camera that training skips without a word, or takes for low-dimensional numbers."""
    path, expected = file
    with open_demos(path) as demos:
        np.testing.assert_array_equal(demos.read("demo_0").obs["front"], expected)
        assert row_types(demos, "demo_0")["front"] == ((12, 16, 3), np.uint8)
        rows = load_rows([(demos, demos.names)], ("front", "qpos"), placement="host")
        np.testing.assert_array_equal(rows.large["front"].values, expected)
    convert(path, tmp_path / "b.hdf5")
    with DemoFile(tmp_path / "b.hdf5") as copy:
        assert copy.datasets("demo_0")["obs/front"].dtype == np.uint8
        np.testing.assert_array_equal(copy.read("demo_0").obs["front"], expected)


def test_what_is_converted_is_said_and_not_read_from_the_disk(tmp_path):
    """Guards against: rows of another shape than the policy was built for."""
    with h5py.File(tmp_path / "a.hdf5", "w") as target:
        target["data/demo_0/actions"], target["data/demo_0/obs/front"] = np.zeros((6, 2)), GRAY
    with open_demos(tmp_path / "a.hdf5") as demos:
        assert any("obs/front: grayscale; taken as images" in note for note in demos.notes)
        with pytest.raises(DemoFormatError, match=r"front holds images that are grayscale.*robopolicy convert"):
            load_rows([(demos, demos.names)], ("front",), placement="disk")


@pytest.mark.parametrize("values", [GRAY.astype(np.uint16), COLOR.astype(np.uint16), COLOR.astype(np.float32)])
def test_images_without_a_known_scale_are_refused_by_training(tmp_path, capsys, values):
    """Guards against: 16-bit or 0 .. 255 float images that training leaves out without a message."""
    with h5py.File(tmp_path / "a.hdf5", "w") as target:
        for name in ("demo_0", "demo_1"):
            target[f"data/{name}/actions"] = np.random.default_rng(1).normal(size=(6, 7))
            target[f"data/{name}/obs/front"], target[f"data/{name}/obs/qpos"] = values, np.ones((6, 7))
    words = [
        "train",
        "--run-dir",
        str(tmp_path / "run"),
        "--data.cameras",
        "null",
        "--data.files",
        str(tmp_path / "a.hdf5"),
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "front is" in said
    assert "list the images to use in --data.cameras" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "white", "expected"),
    [
        (COLOR.astype(np.uint16) * 257, 65535, COLOR),
        (GRAY.astype(np.uint16) * 16, 255 * 16, np.repeat(GRAY[..., None], 3, -1)),
        (COLOR.astype(np.float32).transpose(0, 3, 1, 2), 255, COLOR),
    ],
)
def test_images_of_a_stated_scale_are_converted(tmp_path, values, white, expected):
    """Guards against: 16-bit cameras that can't be used at all, or by a guessed scale."""
    with h5py.File(tmp_path / "a.hdf5", "w") as target:
        target["data/demo_0/actions"] = np.random.default_rng(1).normal(size=(6, 7))
        target["data/demo_0/obs/front"] = values
    assert main(["convert", str(tmp_path / "a.hdf5"), str(tmp_path / "b.hdf5"), "--white", f"front={white}"]) == 0
    with DemoFile(tmp_path / "b.hdf5") as copy:
        np.testing.assert_array_equal(copy.read("demo_0").obs["front"], expected)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("front=100", "values 0 .. 255, expected 0 .. 100"),
        ("qpos=1", "rows of shape (7,) are not images"),
        ("wrist=255", "no wrist among the observations; it has: "),
        ("front=0", "--white front=0: expected a number more than 0"),
        ("front", "--white: 'front' is not NAME=VALUE"),
    ],
)
def test_a_scale_that_contradicts_the_images_is_refused(tmp_path, capsys, word, message):
    """Guards against: brightness cut off without a word."""
    with h5py.File(tmp_path / "a.hdf5", "w") as target:
        target["data/demo_0/actions"] = np.random.default_rng(1).normal(size=(6, 7))
        image = COLOR.astype(np.uint16)
        image[0, 0, 0] = [0, 255, 1]
        target["data/demo_0/obs/front"], target["data/demo_0/obs/qpos"] = image, np.ones((6, 7))
    assert main(["convert", str(tmp_path / "a.hdf5"), str(tmp_path / "b.hdf5"), "--white", word]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "b.hdf5").exists()


def test_low_dimensional_arrays_stay_as_they_are():
    """Guards against: a matrix of rotations taken for an image."""
    for values in (np.zeros((4, 3, 3)), np.zeros((4, 7)), np.zeros((4, 2, 3)), np.zeros((4, 12, 12)), np.zeros(4)):
        assert image_form(values.shape[1:], values.dtype) is None
        assert as_image(values) is values
