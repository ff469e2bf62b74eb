"""What a keyed client at 20 Hz notices of 5,000 hostile frames and 200 strangers who hold connections.

    python eval/bench_hostile.py [--frames 5000] [--strangers 200] [--turns 5] [--json FILE]

Quiet and attacked turns alternate, so that what else the machine does falls on both alike. Server, client and attacker are
processes of their own; each hostile frame comes over a connection of its own, with the key.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import msgpack
import numpy as np
from bench_serve import child, load, row, serve_child
from bench_table import bar, show
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

KEY = "a-key-of-16-chars"
QUIET_TIMES = 2.0
"""Goal: the p99 beside the attack over the quiet one."""


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000, help="hostile frames in all")
    parser.add_argument("--strangers", type=int, default=200, help="connections that say nothing")
    parser.add_argument("--turns", type=int, default=5, help="quiet and attacked turns")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--child", choices=["serve", "attack", "drive"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "serve":
        serve_child("low-dim", KEY)
    elif options.child == "attack":
        attack(options.port, options.frames, options.strangers)
    elif options.child == "drive":
        drive(options.port)
    else:
        rows, bars = compare(options.frames, options.strangers, options.turns)
        show(rows, bars, options.json)


def compare(frames: int, strangers: int, turns: int) -> tuple[list[dict], list[dict]]:
    """Latencies of the keyed client in turns of both kinds."""
    quiet: list[float] = []
    attacked: list[float] = []
    sent = refused = 0
    with child(sys.executable, __file__, "--child", "serve") as port:
        here = [sys.executable, __file__, "--port", str(port)]
        for _ in range(turns):
            quiet += _driven(here, 10.0)
            share = ["--frames", str(frames // turns), "--strangers", str(strangers)]
            command = [*here, "--child", "attack", *share]
            attacker = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
            assert attacker.stdout is not None
            attacker.stdout.readline()  # the strangers hold their connections
            attacked += _driven(here, None, attacker)
            counted = json.loads(attacker.communicate()[0])
            sent, refused = sent + counted["sent"], refused + counted["refused"]
    rows = [
        row("a call of a keyed client at 20 Hz", "quiet", quiet) | {"calls": len(quiet)},
        row("a call of a keyed client at 20 Hz", f"beside {sent} hostile frames, {strangers} strangers", attacked)
        | {"calls": len(attacked), "refused": refused},
    ]
    ratio = np.quantile(attacked, 0.99) / np.quantile(quiet, 0.99)
    return rows, [
        bar("p99 beside the attack: times the quiet one", ratio, QUIET_TIMES, "lower"),
        bar("hostile frames sent", sent, frames),
    ]


def _driven(here: list[str], seconds: float | None, until: "subprocess.Popen[str] | None" = None) -> list[float]:
    """Latencies [ms] over some seconds, or until a process ends."""
    client = subprocess.Popen([*here, "--child", "drive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if until is not None:
        until.wait()
    else:
        time.sleep(seconds or 0.0)
    return json.loads(client.communicate("")[0])


def drive(port: int) -> None:
    """One keyed robot, in turns of a second until standard input ends; its latencies [ms] as JSON."""
    import asyncio
    import select

    latencies: list[float] = []
    while not latencies or not select.select([sys.stdin], [], [], 0)[0]:
        found, _ = asyncio.run(load(port, 1, 4.0, {"Authorization": f"Api-Key {KEY}"}))
        latencies += found  # each from when it was due, so that a call that was late twice counts as that late
    print(json.dumps(latencies[len(latencies) // 10 :]))


def attack(port: int, frames: int, strangers: int) -> None:
    """Hold connections without a word, and send what servers of this kind have fallen over; JSON at the end."""
    rng = np.random.default_rng(os.getpid())
    refused = sent = 0
    with ExitStack() as stack:
        for _ in range(strangers):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        print("ready", flush=True)
        for _ in range(frames):
            with suppress(WebSocketException, OSError, TimeoutError):
                headers = {"Authorization": f"Api-Key {KEY}"}
                with connect(
                    f"ws://127.0.0.1:{port}", compression=None, max_size=None, additional_headers=headers
                ) as it:
                    it.recv(timeout=30)
                    it.send(hostile(rng))
                    sent += 1
                    refused += isinstance(it.recv(timeout=30), str)
    print(json.dumps({"sent": sent, "refused": refused}))


def hostile(rng: np.random.Generator) -> bytes:
    """One message: wrong types, shapes that lie, depths without end, claims of gigabytes, noise, or new names."""
    array = {b"__ndarray__": True, b"data": bytes(int(rng.integers(0, 64))), b"dtype": "<f4", b"shape": [3]}
    lies = [
        {b"dtype": "|O"},
        {b"dtype": "(1000000,)f8"},
        {b"shape": [2**40]},
        {b"shape": [-1]},
        {b"shape": [1] * 40},
        {},
    ]
    kinds = [
        lambda: msgpack.packb({"ee_pose": {**array, **lies[rng.integers(len(lies))]}, "prompt": "lift"}),
        lambda: b"\x91" * int(rng.integers(1, 5000)) + b"\x90",
        lambda: b"\x81\xa1a" * int(rng.integers(1, 5000)) + b"\x80",
        lambda: rng.bytes(int(rng.integers(0, 500))),
        lambda: b"\xc6\x40\x00\x00\x00",
        lambda: b"\xdd\x3f\xff\xff\xff",
        lambda: msgpack.packb([[[]] * 250] * 200),
        lambda: msgpack.packb({rng.bytes(20).hex(): 1, "prompt": "lift"}),
        lambda: bytes(900_000),
    ]
    return kinds[rng.integers(len(kinds))]()


if __name__ == "__main__":
    main()
