"""Files made to mislead, stall or fill the memory of whoever opens them: refused in one line, in time, in little memory."""

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.demos.formats import open_demos
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.types import DemoFormatError
from tests.demo_samples import write_lerobot

NESTED = "[" * 10_000 + "]" * 10_000
ENV_ARGS = ["[]", "3", '"text"', NESTED, '{"a":' * 2000 + "1" + "}" * 2000, '{"env_name": 3}', '{"env_kwargs": []}']
ENV_ARGS += [
    '{"env_kwargs": {"task": []}}',
    '{"env_kwargs": {"image_size": 1e99}}',
    '{"privileged": "qpos"}',
    "{",
    "9" * 9999,
]
ENV_ARGS += ['{"rate": NaN}', '{"rate": 1e999}', '{"seed": ' + "1" * 400 + "}"]
SPECS = ["[]", "null", '{"arm": 1000000000}', '{"arm": [0, 1, 1000000000]}', '{"arm": -1}', '{"arm": "six"}']
SPECS += ['{"rate_hz": Infinity}', '{"rate_hz": 1e308}', '{"rate_hz": "20"}', '{"constant": {"x": 1}}', '{"color": 1}']
SPECS += [
    '{"gripper_values": [[1]]}',
    '{"kind": []}',
    '{"arm": 2, "gripper": 0, "units": [1, 2]}',
    '{"arm": true}',
    NESTED,
]
JSON_ATTRIBUTES = {
    "env_args": ENV_ARGS,
    "action_spec": SPECS,
    "checksums": ["[]", "{", NESTED, '{"crc32": "x"}'],
    "token_encoder": ["[]", NESTED],
}


def copied(tiny_demos: Path, folder: Path, change: Callable[[h5py.File], object]) -> Path:
    path = folder / "demos.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def assert_refused(path: Path) -> str:
    """Opened or read, it is refused in one line."""
    with pytest.raises(DemoFormatError) as caught, open_demos(path) as demos:
        list(map(demos.read, demos.names))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in JSON_ATTRIBUTES.items() for text in texts])
def test_json_of_another_kind_is_refused(tiny_demos, tmp_path, key, text):
    """Guards against: tracebacks, endless recursion, or gigabytes from what a file says of itself."""
    if len(text) < 60_000:
        path = copied(tiny_demos, tmp_path, lambda file: file["data"].attrs.__setitem__(key, text))
        assert key in assert_refused(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", [1, 2]),
        ("seed", 1.5),
        ("seed", "one"),
        ("instruction", 7),
        ("instruction", [1.0]),
        ("num_samples", [12]),
        ("num_samples", "twelve"),
        ("note", h5py.Empty("f4")),
        ("note", np.complex128(1j)),
    ],
)
def test_attributes_of_another_type_are_refused(tiny_demos, tmp_path, key, value):
    """Guards against: `int([1, 2])` as a traceback, or an instruction that is a number."""
    assert_refused(copied(tiny_demos, tmp_path, lambda file: file["data/demo_0"].attrs.__setitem__(key, value)))


def test_an_attribute_whose_name_is_no_text_is_refused(tiny_demos, tmp_path):
    """Guards against: a TypeError where names of bytes meet names of text, such as after one flipped bit."""
    path = copied(tiny_demos, tmp_path, lambda file: file["data/demo_0"].attrs.__setitem__("note", 1))
    path.write_bytes(path.read_bytes().replace(b"note\0", b"n\xed\xede\0"))
    assert "expected UTF-8 text" in assert_refused(path)


@pytest.mark.parametrize("kind", ["S4", "longdouble", "complex64", "object", "compound"])
def test_arrays_of_another_type_are_refused(tmp_path, kind):
    """Guards against: a traceback of torch in the middle of a training."""
    values = {
        "S4": np.full((5, 2), b"text"),
        "longdouble": np.ones((5, 2), np.longdouble),
        "complex64": np.ones((5, 2), np.complex64),
        "object": np.full((5, 2), "text", object),
        "compound": np.zeros((5, 2), [("x", "f4")]),
    }[kind]
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/x"] = np.zeros((5, 2)), values
    assert "x has type" in assert_refused(path)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "bool", "f2"])
def test_arrays_of_unusual_numbers_are_converted(tmp_path, dtype):
    """Guards against: numbers of another machine's byte order, which torch refuses."""
    path, values = tmp_path / "demos.hdf5", np.arange(10).reshape(5, 2).astype(dtype)
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/x"] = values.astype(">f4"), values
    with DemoFile(path) as demos:
        demo = demos.read("demo_0")
    assert demo.actions.dtype.isnative
    assert demo.obs["x"].dtype.isnative
    np.testing.assert_array_equal(demo.obs["x"], values.astype(int))


def bomb(name: str, file: h5py.File) -> None:
    """Files of kilobytes or a few megabytes that ask for gigabytes."""
    demo = file.create_group("data/demo_0")
    demo["actions"], obs = np.zeros((4, 2)), demo.create_group("obs")
    if name == "gzip":
        obs.create_dataset("x", (2**30,), "f4", chunks=(2**24,), compression="gzip")
        packed = zlib.compress(bytes(2**26))
        for chunk in range(64):
            obs["x"].id.write_direct_chunk((chunk * 2**24,), packed)
    elif name == "chunk that unpacks to more":
        obs.create_dataset("x", (4, 8), "u1", chunks=(4, 8), compression="gzip")
        packer = zlib.compressobj()
        packed = b"".join(packer.compress(bytes(2**24)) for _ in range(72)) + packer.flush()
        obs["x"].id.write_direct_chunk((0, 0), packed)
    elif name == "gzip twice":
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((4, 8))
        settings.set_deflate(1)
        settings.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (1,))
        h5py.h5d.create(obs.id, b"x", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((4, 8)), settings)
    elif name == "never stored":
        for number in range(30):
            obs.create_dataset(f"x{number}", (2**28,), "f4")
    elif name == "huge chunk":
        obs.create_dataset("x", (4, 2), "f4", chunks=(4, 2**27), maxshape=(4, None), compression="gzip")
    elif name == "hard-linked demos":
        obs["x"] = np.zeros((4, 2))
        for number in range(1, 2_000):
            file[f"data/demo_{number}"] = demo
    elif name == "attributes":
        obs["x"] = np.zeros((4, 2))
        for number in range(3_000):
            demo.attrs[f"a{number}"] = number
    elif name == "deep":
        group = obs
        for _ in range(500):
            group = group.create_group("g")
        group["x"] = np.zeros((4, 2))


BOMBS = [
    "gzip",
    "chunk that unpacks to more",
    "gzip twice",
    "never stored",
    "huge chunk",
    "hard-linked demos",
    "attributes",
]
OPENED = """
import resource, sys, time
from robopolicy.demos import probe
from robopolicy.demos.formats import open_demos
from robopolicy.types import DemoFormatError
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    with open_demos(sys.argv[1]) as demos:
        for name in demos.names:
            demos.read(name)
    said = "accepted"
except DemoFormatError as error:
    said = str(error)
probe._examiner.close()  # the memory of a child counts when it has ended
most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(most / 2**20, time.monotonic() - began, said, sep="\\t")
"""


@pytest.mark.parametrize("name", [*BOMBS, "deep"])
def test_a_small_file_takes_little_memory_and_time(tmp_path, name):
    """Guards against: 4 MB that fill the memory or keep the reader busy for minutes."""
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        bomb(name, file)
    assert path.stat().st_size < 20e6
    said = subprocess.run([sys.executable, "-c", OPENED, str(path)], capture_output=True, text=True, check=True).stdout
    gigabytes, seconds, message = said.strip().split("\t")
    assert "refused" in message or "at most 1024 are read" in message
    assert float(gigabytes) < 1.5
    assert float(seconds) < 20


@pytest.mark.parametrize(
    "verb",
    [
        ["check"],
        ["train", "--config", str(Path(__file__).parents[2] / "configs/lift_lowdim.yaml"), "--data.files"],
        ["convert"],
    ],
)
def test_every_verb_refuses_in_one_line(tiny_demos, tmp_path, capsys, verb):
    """Guards against: a check that only some of the verbs make."""
    path = copied(tiny_demos, tmp_path, lambda file: file["data"].attrs.__setitem__("env_args", NESTED))
    extra = {"convert": [str(tmp_path / "out")], "train": ["--run-dir", str(tmp_path / "run")]}.get(verb[0], [])
    assert main([*verb, str(path), *extra]) == 2
    said = capsys.readouterr()
    assert (said.err + said.out).count("env_args: not valid JSON") == 1
    assert "Traceback" not in said.err + said.out


def test_a_terminals_commands_in_names_are_printed_escaped(tmp_path, capsys):
    """Guards against: a file that clears the screen, renames the window or writes into the shell's history."""
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/\x1b[2Jkey\x07"] = np.zeros((5, 2)), np.ones((5, 2))
        file["data/demo_0"].attrs["instruction"] = "lift \x1b]0;owned\x07"
    assert main(["check", str(path)]) in (0, 1)
    assert main(["view", str(path), "--demo", "\x1b[2J", "--out", str(tmp_path / "a.gif")]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\x07" not in said.out + said.err
    assert r"obs/\x1b[2Jkey\x07" in said.out


@pytest.mark.parametrize(
    "template",
    [
        3,
        None,
        ["a"],
        "{episode_index:1000000000d}",
        "{episode_index.__class__.__mro__}",
        "{episode_index!r}",
        "{episode_index[0]}",
        "../../{episode_index}",
        "/etc/passwd",
        "{",
        "data/{other}.parquet",
    ],
)
def test_lerobot_templates_are_parsed_and_not_executed(tmp_path, template):
    """Guards against: `str.format` on a stranger's text, which reads attributes and makes strings of a gigabyte."""
    folder = write_lerobot(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps(info | {"data_path": template}))
    assert_refused(folder)
