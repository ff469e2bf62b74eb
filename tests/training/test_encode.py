"""Running a frozen backbone over a demo file once."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm isn't installed")

from robopolicy.cli import main
from robopolicy.demos.formats import open_demos
from robopolicy.demos.hdf5 import TOKENS_PADDED, DemoWriter
from robopolicy.model.encoders._loading import load_backbone
from robopolicy.model.texts.prompt import Prompter
from robopolicy.training import encode
from robopolicy.training.encode import EncodeOptions, encode_file, require_one_encoder
from robopolicy.types import DemoFormatError
from tests.demo_samples import write_lerobot
from tests.tiny_backbones import save_backbone


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test may look for a model on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny CLIP."""
    return str(save_backbone("clip", tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture
def file(tiny_demos, tmp_path):
    """A demo file in a folder of its own, which must stay as it is."""
    path = Path(shutil.copy(tiny_demos, tmp_path / "demos.hdf5"))
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before


def test_every_frame_gains_the_tokens_that_the_live_encoder_gives(file, model):
    """Guards against: stored tokens that differ from the live ones on the robot."""
    done = encode_file(file, model)
    assert (done.demos, done.frames) == (5, 54)
    with open_demos(file) as demos:
        demo = demos.read("demo_2")
        instructions = [str(demos.read(name, ()).instruction) for name in demos.names]
    backbone = load_backbone(model, (16, 16))
    text = Prompter(model, "{instruction}")
    text.fit(instructions)
    live, valid = backbone(
        [torch.from_numpy(demo.obs["front"])], text.prepare([demo.instruction]).expand(len(demo), -1)
    )
    assert demo.tokens.shape == (15, done.token_count, done.token_width)
    assert demo.tokens.dtype == np.float16
    assert list(demo.attributes["token_valid"]) == valid[0].int().tolist()
    assert not valid.all()
    with open_demos(file) as demos:
        assert demos.attributes[TOKENS_PADDED]
    real = valid[0].numpy()
    np.testing.assert_allclose(demo.tokens[:, real], live[:, real].detach(), atol=2e-3)
    np.testing.assert_array_equal(
        demo.tokens.max(axis=1), demo.tokens[:, real].max(axis=1), "padding repeats a real token"
    )


def test_a_second_run_resumes_where_the_first_was_cut(file, model, monkeypatch):
    """Guards against: a night of encoding lost to a kill in the morning."""
    run, calls = encode._encode_demo, []

    def dies_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(encode, "_encode_demo", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        encode_file(file, model)
    with open_demos(file) as demos:
        assert [demos.read(name).tokens for name in demos.names] == [None] * 5
    monkeypatch.setattr(encode, "_encode_demo", run)
    assert encode_file(file, model).demos == 3
    assert encode_file(file, model).demos == 0
    with open_demos(file) as demos:
        assert all(demos.read(name).tokens is not None for name in demos.names)


def test_tokens_of_a_demo_that_has_changed_are_refused_and_made_again(file, model, tiny_demos, make_demo, tmp_path):
    """Guards against: the tokens of one demo on the actions of another, after the file was collected again."""
    other = tmp_path / "other" / "demos.hdf5"
    with DemoWriter(other) as writer:
        for number in (0, 7, 2):
            writer.write(replace(make_demo(number, steps=12 if number == 0 else 9), name=f"demo_{len(writer.names)}"))
    encode_file(other, model)
    other.unlink()
    shutil.copy(tiny_demos, other)
    with open_demos(other) as demos:
        assert demos.read("demo_0").tokens is not None
        with pytest.raises(
            DemoFormatError, match=r"demos.tokens.hdf5, demo_1: tokens of another demo .* encode the demo"
        ):
            demos.read("demo_1")
    assert encode_file(other, model).demos == 4, "demo_0 is the same"
    with open_demos(other) as demos:
        assert [demo.tokens is not None for demo in map(demos.read, demos.names)] == [True] * 5


def test_a_flipped_bit_among_the_tokens_is_noticed(file, model):
    """Guards against: tokens without a checksum, of which any number would pass."""
    encode_file(file, model)
    beside = file.with_name("demos.tokens.hdf5")
    with h5py.File(beside, "r+") as tokens:
        tokens["data/demo_3/tokens"][2, 0, 0] += 1
        tokens["data/demo_4"].attrs["token_valid"] = np.ones(48, int)
    with open_demos(file) as demos:
        for name in ("demo_3", "demo_4"):
            with pytest.raises(
                DemoFormatError, match=rf"demos.tokens.hdf5, {name}: tokens changed since they were written"
            ):
                demos.read(name)


def test_demos_and_tokens_can_go_to_a_file_of_their_own(file, model, tmp_path):
    """Guards against: one demo file that can't be encoded with two backbones."""
    encode_file(file, model)
    done = encode_file(file, model, EncodeOptions(template="please {instruction}"), out=tmp_path / "both.hdf5")
    assert (done.path, done.demos) == (tmp_path / "both.hdf5", 5)
    with open_demos(file) as one, open_demos(done.path) as both:
        assert require_one_encoder([both])["template"] == "please {instruction}"
        assert both.attributes[TOKENS_PADDED]
        assert both.action_spec == one.action_spec
        for name in one.names:
            assert both.read(name).tokens.shape[0] == len(one.read(name))
            np.testing.assert_array_equal(both.read(name).obs["front"], one.read(name).obs["front"])
    with pytest.raises(FileExistsError, match="choose another --out"):
        encode_file(file, model, out=tmp_path / "both.hdf5")


def test_tokens_of_another_encoder_are_refused(file, model, tmp_path):
    """Guards against: half a file of one backbone and half of another."""
    encode_file(file, model)
    other = str(save_backbone("siglip", tmp_path / "siglip"))
    with pytest.raises(
        DemoFormatError, match=r"demos.tokens.hdf5: holds tokens of clip \(.*\) on front, not of siglip"
    ):
        encode_file(file, other)
    with pytest.raises(DemoFormatError, match="holds tokens of clip"):
        encode_file(file, model, EncodeOptions(template="please {instruction}"))


def test_files_of_different_encoders_can_t_be_mixed(file, model, tiny_demos, tmp_path):
    """Guards against: mixed data sets of different encoders, which nothing else would notice."""
    second = shutil.copy(tiny_demos, tmp_path / "second.hdf5")
    encode_file(file, model)
    with open_demos(file) as one, open_demos(second) as bare:
        assert require_one_encoder([one])["kind"] == "clip"
        with pytest.raises(DemoFormatError, match=r"second.hdf5: no tokens in it or beside it; `robopolicy encode`"):
            require_one_encoder([one, bare])
    encode_file(second, model, EncodeOptions(template="please {instruction}"))
    with (
        open_demos(file) as one,
        open_demos(second) as other,
        pytest.raises(DemoFormatError, match=r"second.hdf5 has tokens of clip.*and demos.hdf5 has tokens"),
    ):
        require_one_encoder([one, other])


def test_a_missing_camera_or_another_format_is_refused_before_any_work(file, model, tmp_path):
    """Guards against: a typo that shows only after the model has been loaded for minutes."""
    with pytest.raises(DemoFormatError, match="no wrist to encode; cameras: front"):
        encode_file(file, model, EncodeOptions(cameras=("wrist",)))
    with pytest.raises(DemoFormatError, match="convert"):
        encode_file(write_lerobot(tmp_path / "set"), model)
    assert not file.with_name("demos.tokens.hdf5").exists()


def test_what_was_done_is_printed_with_the_place_last(file, model, capsys):
    """Guards against: output whose last line is not where the result lies."""
    assert main(["encode", str(file), "--model", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["encoded", "5", "demos,", "54", "frames"]
    assert lines[-1].endswith("demos.tokens.hdf5")
