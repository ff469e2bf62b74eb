"""A policy trained on encoded tokens, behind the backbone that made them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm isn't installed")

from robopolicy.cli import main
from robopolicy.components import ConfigError
from robopolicy.demos.formats import open_demos
from robopolicy.demos.writer import DemoWriter
from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.model.encoders._backbones import Reading
from robopolicy.model.encoders._tokens import FrameTokens
from robopolicy.training.encode import EncodeOptions, encode_file
from robopolicy.training.train import train
from tests.small_runs import SMALL
from tests.tiny_backbones import FAMILIES, save_backbone

KINDS = (*FAMILIES, "dinov2")
FRAMES = 50


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test may look for a model on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def trained_on_tokens(demos: Path, folder: Path, model: Path, options: EncodeOptions | None = None, **changes) -> Path:
    """Encode a copy of the demos, and train a step on the tokens; returns the run folder."""
    folder.mkdir()
    file = Path(shutil.copy(demos, folder / "demos.hdf5"))
    encode_file(file, str(model), options)
    config = ExperimentConfig().change(
        {
            **SMALL,
            "data.files": [str(file)],
            "data.batch_size": 8,
            "encoder.kind": "precomputed",
            "pooling.kind": "attention",
            "training.max_steps": 1,
            "training.valid_every": 1,
            "training.checkpoint_every": 100,
            **changes,
        }
    )
    return train(config, folder / "run")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    """A tiny backbone."""
    return save_backbone(kind, tmp_path_factory.mktemp("models") / kind)


@pytest.fixture(scope="module")
def run(model, kind, tiny_demos, tmp_path_factory):
    """A run folder trained on its tokens."""
    return trained_on_tokens(tiny_demos, tmp_path_factory.mktemp("runs") / kind, model)


@pytest.fixture(scope="module")
def clip_run(tiny_demos, tmp_path_factory):
    """A run trained on tokens of a tiny CLIP, and that CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    model = save_backbone("clip", folder / "model")
    return trained_on_tokens(tiny_demos, folder / "made", model), model


def frames_of(run: Path, names: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
    """Frames of several demos side by side, one after another as episodes: (demos, ...) per key, with tokens."""
    with open_demos(run.parent / "demos.hdf5") as file:
        demos = [file.read(name) for name in names]
    frames = []
    for t in range(FRAMES):
        rows = [
            {**{k: v[t % len(demo)] for k, v in demo.obs.items()}, "tokens": demo.tokens[t % len(demo)]}
            for demo in demos
        ]
        frame = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        frame["token_valid"] = np.stack([demo.attributes["token_valid"] for demo in demos])
        frame["instruction"] = [demo.instruction for demo in demos]
        frame["ends"] = np.array([(t + 1) % len(demo) == 0 for demo in demos])
        frames.append(frame)
    return frames


def test_live_actions_are_those_of_the_stored_tokens(run, model):
    """Guards against: a robot that sees other tokens than training did, in value, order, padding or rounding."""
    stored, live = load_policy(run), load_policy(run, backbone=str(model))
    assert "tokens" not in live.spec.observation
    assert live.spec.cameras == ("front",)
    states = [policy.initial_state(2) for policy in (stored, live)]
    largest = 0.0
    for frame in frames_of(run, ("demo_1", "demo_2")):
        without = {key: value for key, value in frame.items() if not key.startswith("token")}
        expected, states[0] = stored.act(frame, states[0])
        found, states[1] = live.act(without, states[1])
        largest = max(largest, float((found - expected).abs().max()))
        states = [state.reset(torch.as_tensor(frame["ends"])) for state in states]
    assert largest <= 1e-5


def test_auto_takes_the_backbone_that_the_run_records(clip_run):
    """Guards against: a folder that must be remembered by hand, and typed for every verb."""
    run, model = clip_run
    assert json.loads((run / "policy.json").read_text())["provenance"]["token_encoder"]["source"] == str(model)
    named, found = load_policy(run, backbone=str(model)), load_policy(run, backbone="auto")
    assert found.frame_tokens.identity == named.frame_tokens.identity


def test_an_observation_with_tokens_goes_to_the_head_as_it_is(clip_run):
    """Guards against: a client that encodes by itself, refused by a server that has a backbone too."""
    run, model = clip_run
    stored, live = load_policy(run), load_policy(run, backbone=str(model))
    (frame,) = frames_of(run, ("demo_0",))[:1]
    sent = {key: value for key, value in frame.items() if key != "front"}
    expected, _ = stored.act(sent, stored.initial_state(1))
    found, _ = live.act(sent, live.initial_state(1))
    assert torch.equal(found, expected)


def changed_processor(model: Path, folder: Path, **changes) -> Path:
    """A copy of the model with other processor settings."""
    shutil.copytree(model, folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_another_backbone_is_refused_with_both_values(clip_run, tmp_path):
    """Guards against: noise as tokens, from weights, a processor or a prompt that training did not have."""
    run, model = clip_run
    torch.manual_seed(1)
    siglip = save_backbone("siglip", tmp_path / "siglip")
    with pytest.raises(ConfigError, match="kind 'siglip', not 'clip'"):
        load_policy(run, backbone=str(siglip))
    other = changed_processor(model, tmp_path / "other", image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match=r"processor \{.*0.1, 0.2, 0.3.*\}, not \{.*0.4, 0.5, 0.6"):
        load_policy(run, backbone=str(other))
    import transformers

    moved = transformers.AutoModel.from_pretrained(model)
    next(moved.parameters()).data += 1
    shutil.copytree(model, tmp_path / "moved")
    moved.save_pretrained(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"weights '\w{16}', not '\w{16}'"):
        load_policy(run, backbone=str(tmp_path / "moved"))
    made = FrameTokens(str(model), {"front": (16, 16)}, "please {instruction}", 12)
    with pytest.raises(ConfigError, match=r"template 'please \{instruction\}', not '\{instruction\}'"):
        load_policy(run, backbone=made)


def test_a_run_that_records_no_backbone_is_refused(clip_run, tmp_path):
    """Guards against: a guess at which backbone made the tokens."""
    run, model = clip_run
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    told = json.loads((copy / "policy.json").read_text())
    told["provenance"]["token_encoder"] = {}
    (copy / "policy.json").write_text(json.dumps(told))
    for backbone in ("auto", str(model)):
        with pytest.raises(ConfigError, match="doesn't record which backbone"):
            load_policy(copy, backbone=backbone)
    told["provenance"]["token_encoder"] = {"model": "m", "weights": "w", "cameras": ["front"]}
    (copy / "policy.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="older robopolicy encoded them"):
        load_policy(copy, backbone=str(model))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("nowhere/such-a-model", "no model at 'nowhere/such-a-model'"),
        ("{empty}", "no model at"),
        ("{bert}", "reads no images"),
    ],
)
def test_a_folder_that_is_no_backbone_is_refused_in_one_line(backbone, message, clip_run, tmp_path, capsys):
    """Guards against: a traceback of the model library for a mistyped folder."""
    from tests.tiny_backbones import save_sentence_model

    (tmp_path / "empty").mkdir()
    if backbone == "{bert}":
        save_sentence_model(tmp_path / "bert")
    name = backbone.format(empty=tmp_path / "empty", bert=tmp_path / "bert")
    assert main(["eval", str(clip_run[0]), "--backbone", name, "--task", "lift"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_images_of_another_type_or_size_are_refused(clip_run):
    """Guards against: floats in [0, 1] or images of another size, which the backbone would read without complaint."""
    live = load_policy(clip_run[0], backbone="auto")
    obs = {key: np.zeros((1, *spec.shape), spec.dtype) for key, spec in live.spec.observation.items()}
    for front, message in (
        (np.zeros((1, 16, 16, 3), np.float32), "expected uint8 images, 0 to 255"),
        (np.zeros((1, 24, 24, 3), np.uint8), r"has shape \(1, 24, 24, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            live.act({**obs, "front": front}, live.initial_state(1))


def test_a_policy_that_reads_no_tokens_needs_no_backbone(tiny_demos, tmp_path):
    """Guards against: a backbone that is loaded and never used."""
    config = ExperimentConfig().change({**SMALL, "data.files": [str(tiny_demos)], "training.max_steps": 1})
    run = train(config, tmp_path / "run")
    with pytest.raises(
        ConfigError, match="--backbone is for a policy that reads 'tokens'; this one reads: cube_red, ee_pose"
    ):
        load_policy(run, backbone="auto")


@pytest.mark.parametrize("reading", [Reading("last"), Reading("mean"), Reading("all", layer=1)])
def test_another_readout_or_layer_is_bound_as_it_was_encoded(reading, tiny_demos, tmp_path):
    """Guards against: the last layer's tokens for a head that was trained on another's."""
    model = save_backbone("smolvlm", tmp_path / "model")
    run = trained_on_tokens(tiny_demos, tmp_path / "made", model, EncodeOptions(reading=reading))
    stored, live = load_policy(run), load_policy(run, backbone="auto")
    (frame,) = frames_of(run, ("demo_0",))[:1]
    without = {key: value for key, value in frame.items() if not key.startswith("token")}
    expected, _ = stored.act(frame, stored.initial_state(1))
    found, _ = live.act(without, live.initial_state(1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if reading.readout != "all":
        assert live.frame_tokens.shape[0] == 1


TWO = "front: {image_1} wrist: {image_2} {instruction}"


@pytest.fixture(scope="module")
def two_cameras(tiny_demos, tmp_path_factory):
    """The demos with a second camera, of which the images are wider."""
    path = tmp_path_factory.mktemp("demos") / "two.hdf5"
    with open_demos(tiny_demos) as demos, DemoWriter(path, action_spec=demos.action_spec) as writer:
        for name in demos.names:
            demo = demos.read(name)
            wrist = np.ascontiguousarray(demo.obs["front"][:, ::-1].repeat(2, axis=2))
            writer.write(replace(demo, obs={**demo.obs, "wrist": wrist}))
    return path


@pytest.mark.parametrize(
    ("kind", "template", "tiles"),
    [
        ("siglip", "{instruction}", 2),
        ("dinov2", "{instruction}", 2),
        ("paligemma", "{instruction}", 0),
        ("qwen2_5_vl", TWO, 0),
        ("qwen2_5_vl", "{instruction}", 2),
        ("smolvlm", TWO, 2),
    ],
)
def test_several_images_in_a_frame_are_encoded_and_seen_live(kind, template, tiles, two_cameras, tmp_path):
    """Guards against: a camera or tile that is lost, or stands elsewhere on the robot than in training."""
    options = EncodeOptions(("front", "wrist"), template, reading=Reading(tiles=tiles))
    run = trained_on_tokens(two_cameras, tmp_path / "made", save_backbone(kind, tmp_path / "model"), options)
    stored, live = load_policy(run), load_policy(run, backbone="auto")
    assert live.spec.cameras == ("front", "wrist")
    (frame,) = frames_of(run, ("demo_0", "demo_1"))[:1]
    without = {key: value for key, value in frame.items() if not key.startswith("token")}
    expected, _ = stored.act(frame, stored.initial_state(2))
    torch.testing.assert_close(live.act(without, live.initial_state(2))[0], expected, atol=1e-5, rtol=0)
    tokens = live.tokens(without)["tokens"]
    for camera in ("front", "wrist"):
        images = without[camera].copy()
        images[:, :8, :8] = 255 - images[:, :8, :8]  # a part of the whole image and of its first tile alone
        changed = (live.tokens(without | {camera: images})["tokens"] - tokens).abs().amax(dim=(0, 2)) > 1e-4
        assert changed.any()
        if kind == "dinov2":
            assert changed.reshape(2, 5, -1).any(-1).tolist() == [
                [each == camera and view < 2 for view in range(5)] for each in ("front", "wrist")
            ]


def test_a_template_that_misplaces_cameras_is_refused(two_cameras, tmp_path):
    """Guards against: the wrist's image in front of the word front, or a camera that is nowhere in the prompt."""
    model = str(save_backbone("smolvlm", tmp_path / "model"))
    for template, found in (("{image_2} {image_1} {instruction}", "2, 1"), ("{image_1} {instruction}", "1")):
        message = rf"images of cameras {found}; expected {{image_1}} {{image_2}} in this order, or {{images}}"
        with pytest.raises(ConfigError, match=message):
            encode_file(two_cameras, model, EncodeOptions(("front", "wrist"), template), out=tmp_path / "out.hdf5")


def test_demos_without_instructions_are_bound_without_them(make_demo, tmp_path):
    """Guards against: the simulator's instruction in a prompt that was empty for every training frame."""
    from dataclasses import replace

    from robopolicy.demos.hdf5 import DemoWriter

    with DemoWriter(tmp_path / "demos.hdf5") as writer:
        for number in range(3):
            writer.write(replace(make_demo(number), instruction=None))
    run = trained_on_tokens(tmp_path / "demos.hdf5", tmp_path / "made", save_backbone("clip", tmp_path / "model"))
    stored, live = load_policy(run), load_policy(run, backbone="auto")
    assert not live.spec.instruction
    (frame,) = frames_of(run, ("demo_0",))[:1]
    without = {key: value for key, value in frame.items() if not key.startswith("token")}
    expected, _ = stored.act(frame, stored.initial_state(1))
    found, _ = live.act({**without, "instruction": "lift the red cube"}, live.initial_state(1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
