"""Files of strangers hold values and weights: nothing in them is unpickled, nothing that they name is imported."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml

from robopolicy.cli import main
from robopolicy.cli.files import run_check
from robopolicy.client import pack, unpack
from robopolicy.components import ConfigError
from robopolicy.control import runtime
from robopolicy.control.profile import profile_from_dict, read_profile
from robopolicy.control.runtime import ExportError
from robopolicy.control.serving import mappings
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.experiment import load_policy, read_provenance, save_policy
from robopolicy.model.encoders._loading import load_backbone, load_tokenizer
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.model.texts.sentence import SentenceOptions, SentenceText
from robopolicy.training.train import train
from tests.demo_samples import write_robomimic
from tests.exporting import make_policy
from tests.small_runs import small_config

EXPORTED = Path(__file__).parent / "control" / "tiny_export"
MODULE = "planted_by_a_stranger"
NAMES: tuple[Any, ...] = (
    {"class_path": f"{MODULE}.Payload"},
    f"{MODULE}.Payload",
    f"{MODULE}:Payload",
    {"class_path": f"{MODULE}.Payload", "init_args": {}},
    {"kind": f"{MODULE}.Payload"},
    [MODULE],
)
"""Ways in which a value may name code."""
REFUSALS = (ValueError, KeyError, OSError, yaml.YAMLError)
"""How a file that can't be used may be refused."""


class Unpickled:
    """A pickle of it creates a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that planted code creates, whether it is unpickled or imported; the test fails if it exists at the end."""
    marker, modules = tmp_path / "code_was_run", tmp_path / "modules"
    modules.mkdir()
    (modules / f"{MODULE}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Payload: pass\n")
    monkeypatch.syspath_prepend(modules)
    yield marker
    assert MODULE not in sys.modules
    assert not marker.exists()


def paths_in(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping, list and leaf."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths_in(value, (*path, key))
    yield path


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What is there."""
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with `value` at `path`; at the top, its keys are added."""
    copy = json.loads(json.dumps(tree))
    if not path:
        return {**copy, **value} if isinstance(value, dict) else {**copy, "plugins": value}
    value_at(copy, path[:-1])[path[-1]] = value
    return copy


def open_with_names_planted(
    file: Path, write: Callable[[Any], None], tree: Any, opened: Callable[[], Any], leaves: int = 1
) -> None:
    """Name the planted module at every place of a tree in turn; opening refuses the file or takes the name as text.

    Only every `leaves`-th leaf is tried.
    """
    for number, path in enumerate(paths_in(tree)):
        leaf = not isinstance(value_at(tree, path), dict)
        if leaf and number % leaves:
            continue
        names = NAMES[:2] if leaves > 1 else NAMES
        for name in [NAMES[number % len(NAMES)]] if leaf else names:  # a section in several ways, a leaf in one
            write(changed(tree, path, name))
            with suppress(Exception):
                opened()
            assert MODULE not in sys.modules, (file.name, path, name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder."""
    return save_policy(make_policy(), tmp_path / "run", {"task": "lift", "control_dt": 0.05})


@pytest.mark.parametrize("name", ["config.yaml", "policy.json"])
@pytest.mark.parametrize("leaves", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_folder_imports_nothing_it_names(run, marker, name, leaves):
    """Guards against: class paths in a config, which jsonargparse imports whatever the type of the field."""
    file = run / name
    tree = yaml.safe_load(file.read_text())

    def opened() -> None:
        load_policy(run)
        read_provenance(run)

    open_with_names_planted(file, lambda values: file.write_text(json.dumps(values)), tree, opened, leaves)


@pytest.mark.parametrize("pack_pickle", [pickle.dumps, None], ids=["pickle", "torch"])
def test_a_run_folder_unpickles_nothing(run, marker, tmp_path, pack_pickle):
    """Guards against: weights, or a file beside them, that run code when the folder is opened."""
    payload = tmp_path / "payload"
    if pack_pickle is None:
        torch.save(Unpickled(marker), payload)
    else:
        payload.write_bytes(pack_pickle(Unpickled(marker)))
    for name in ("policy.pt", "resume.ckpt", "README.md", "optimizer.bin", *(path.name for path in run.iterdir())):
        folder = Path(shutil.copytree(run, tmp_path / "copy"))
        shutil.copyfile(payload, folder / name)
        with suppress(*REFUSALS):
            load_policy(folder)
        assert not marker.exists(), name
        shutil.rmtree(folder)


def test_an_exported_folder_imports_nothing_it_names(marker, tmp_path):
    """Guards against: a manifest whose words for files, formats or kinds are looked up as code."""
    folder = Path(shutil.copytree(EXPORTED, tmp_path / "exported"))
    file = folder / "manifest.json"
    tree = json.loads(file.read_text())
    open_with_names_planted(
        file, lambda values: file.write_text(json.dumps(values)), tree, lambda: runtime.load(folder, threads=1)
    )


def test_an_exported_folder_unpickles_nothing(marker, tmp_path):
    """Guards against: torch.export.load, which unpickles what a stranger's folder holds."""
    folder = Path(shutil.copytree(EXPORTED, tmp_path / "exported"))
    torch.save(Unpickled(marker), folder / "policy.pt2")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": "torch", "file": "policy.pt2"}))
    with pytest.raises(ExportError, match="format 'torch'; only 'onnx' is run"):
        runtime.load(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("policy.onnx", "manifest.json"):
        torch.save(Unpickled(marker), folder / name)
        with pytest.raises(ExportError):
            runtime.load(folder)
        shutil.copyfile(EXPORTED / name, folder / name)


def test_a_demo_file_unpickles_and_imports_nothing(marker, tmp_path, capsys):
    """Guards against: an environment's name, or bytes in an attribute, taken for code."""
    path = write_robomimic(tmp_path / "demos.hdf5")
    with h5py.File(path) as file:
        tree = json.loads(file["data"].attrs["env_args"])
    payload = pickle.dumps(Unpickled(marker))

    def write(values: Any) -> None:
        with h5py.File(path, "a") as file:
            file["data"].attrs["env_args"] = json.dumps(values)

    def opened() -> None:
        with DemoFile(path) as file:
            file.read(file.names[0])

    open_with_names_planted(path, write, tree, opened)
    write(tree)
    with h5py.File(path, "a") as file:
        for holder in (file, file["data"], file["data/demo_0"]):
            for name in ("env_args", "action_spec", "instruction", "encoder", "seed", "checksums", "kind"):
                holder.attrs[name] = memoryview(payload).tobytes().hex() if name == "seed" else f"{MODULE}.Payload"
        del file["data/demo_1/rewards"]
        file["data/demo_1"].create_dataset("rewards", data=payload.hex())
    with suppress(*REFUSALS):
        opened()
    run_check([str(path)])
    path.write_bytes(payload)
    with pytest.raises(REFUSALS):
        opened()
    assert run_check([str(path)]) == 2
    capsys.readouterr()


def test_a_profile_from_a_robot_imports_nothing(marker, tmp_path):
    """Guards against: a robot, or whoever answers at its address, that runs code on the policy's computer."""
    file = tmp_path / "arm.yaml"
    tree = read_profile("panda").to_dict()

    def opened() -> None:
        values = yaml.safe_load(file.read_text())
        for read in (lambda: read_profile(file), lambda: profile_from_dict(unpack(pack(values)))):
            with suppress(*REFUSALS):
                read()

    open_with_names_planted(file, lambda values: file.write_text(yaml.safe_dump(values)), tree, opened)


def test_a_key_mapping_imports_nothing(marker, tmp_path):
    """Guards against: a mapping passed on from user to user that runs code."""
    file = tmp_path / "aloha.yaml"
    tree = yaml.safe_load((Path(mappings.__file__).parent / "aloha.yaml").read_text())
    open_with_names_planted(
        file, lambda values: file.write_text(yaml.safe_dump(values)), tree, lambda: KeyMapping.read(file)
    )


def test_yaml_tags_make_no_objects(run, marker, tmp_path):
    """Guards against: a YAML loader that builds Python objects."""
    tagged = f"head: !!python/object/apply:{MODULE}.Payload []\n"
    (run / "config.yaml").write_text(tagged)
    (tmp_path / "profile.yaml").write_text(tagged)
    for opened in (lambda: load_policy(run), lambda: read_profile(tmp_path / "profile.yaml")):
        with pytest.raises(REFUSALS):
            opened()


def test_a_backbone_folder_runs_no_code_of_its_own(marker, tmp_path, monkeypatch):
    """Guards against: `auto_map`, for which transformers asks on the terminal whether to import the folder's module."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    auto_map = {name: f"planted.{name}" for name in ("AutoConfig", "AutoModel", "AutoProcessor")}
    auto_map["AutoTokenizer"] = ["planted.Tokenizer", "planted.Tokenizer"]
    for name in ("config", "tokenizer_config", "preprocessor_config"):
        values = {"model_type": "stranger", "auto_map": auto_map, "hidden_size": 8}
        (folder / f"{name}.json").write_text(json.dumps(values))
    openings: dict[str, Callable[[], Any]] = {
        "backbone": lambda: load_backbone(str(folder), (16, 16)),
        "tokenizer": lambda: load_tokenizer(str(folder)),
        "sentence": lambda: SentenceText(SentenceOptions(str(folder)), TextInputs(Vocabulary((), 1), 8)),
    }
    for name, opened in openings.items():
        with pytest.raises(ConfigError):
            opened()
        assert not marker.exists(), name


RESUMED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "text": lambda path: path.write_text("not a resume file"),
    "another": lambda path: torch.save({"a": torch.zeros(3)}, path),
    "a list": lambda path: torch.save([1], path),
    "a link": lambda path: (path.rename(path.with_name("moved")), path.symlink_to(path.with_name("moved"))),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def test_a_training_resumes_from_no_pickle(marker, tmp_path, tiny_demos, capsys):
    """Guards against: a resume file in a folder from somebody else, unpickled by `train --resume`, or a traceback."""
    config = small_config(tiny_demos).change({"training.checkpoint_every": 1})
    run, resume = tmp_path / "run", tmp_path / "run" / "resume.ckpt"
    train(config.change({"training.max_steps": 1}), run)
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for name, plant in {"a pickle": lambda path: torch.save(Unpickled(marker), path), **RESUMED}.items():
        resume.unlink()
        resume.write_bytes(files["resume.ckpt"])
        plant(resume)
        with pytest.raises(
            (ConfigError, OSError), match=r"remove it to start this run again|name a regular file"
        ) as found:
            train(config, run, resume=True)
        assert "\n" not in str(found.value), name
        assert not marker.exists(), name
        resume.with_name("moved").unlink(missing_ok=True)
    words = ["train", "--config", str(run / "config.yaml"), "--run-dir", str(run), "--max-steps", "3"]
    torch.save(Unpickled(marker), (resume.unlink(), resume)[1])
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not marker.exists()
    resume.unlink()
    assert main(words) == 0, "as the message says"
