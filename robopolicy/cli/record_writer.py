"""The process that writes the demo file of `robopolicy run --record`: `python -m robopolicy.cli.record_writer FILE`.

Its input is a header and then the control steps, each a msgpack map preceded by its length. It prints `ready`, or an error
in one line. At the end of the input, when the run has ended or was killed, it writes the demo and prints `recorded`.
"""

import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.parts import file_or_first_part
from robopolicy.demos.writer import DemoWriter
from robopolicy.types import ActionSpec, Demo, one_line

WRITTEN = "recorded"
"""Printed when the demo is in the file."""
LENGTH = struct.Struct("<Q")
"""Prefix of each message: its length in bytes, 64-bit little-endian."""


def framed(message: Mapping[str, Any]) -> bytes:
    """A message in the form that the process reads: its length, then msgpack bytes."""
    from robopolicy.client import pack

    data = pack(dict(message))
    return LENGTH.pack(len(data)) + data


def write_record(source: IO[bytes], path: Path) -> None:
    """Read control steps from `source` until it ends, then write them as one demo; without steps, nothing is written.

    Raises:
        ValueError: the demos in the file have a different action spec.
    """
    messages = _messages(source)
    header = next(messages)
    spec = ActionSpec.from_dict(header["action_spec"])
    with DemoWriter(path, env_args=header["env_args"], action_spec=spec, resume=True) as writer:
        if (found := file_or_first_part(path)) is not None:
            with DemoFile(found) as file:
                if file.action_spec != spec:
                    raise ValueError("the demos in the file have a different action spec; choose another file")
        print("ready", flush=True)
        if steps := list(messages):
            writer.write(_demo(steps, "demo_0", header["seed"]))
    if steps:
        with suppress(BrokenPipeError):  # the run was killed
            os.write(sys.stdout.fileno(), f"{WRITTEN}\n".encode())


def _messages(source: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Messages up to the end of the input; an incomplete last one is dropped."""
    from robopolicy.client import unpack

    while len(header := source.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(header)
        if len(data := source.read(length)) == length:
            yield unpack(data)


def _demo(steps: Sequence[Mapping[str, Any]], name: str, seed: int | None) -> Demo:
    keys = set.intersection(*(set(step["obs"]) for step in steps))
    return Demo(
        name=name,
        obs={key: np.stack([step["obs"][key] for step in steps]) for key in sorted(keys)},
        actions=np.stack([step["action"] for step in steps]),
        instruction=steps[0]["instruction"],
        seed=seed,
    )


if __name__ == "__main__":
    try:
        write_record(sys.stdin.buffer, Path(sys.argv[1]))
    except Exception as error:
        print(one_line(error) or type(error).__name__, flush=True)
        raise SystemExit(1) from None
