"""openpi's side of the comparisons; runs in an environment of its own, which has openpi-client and numpy < 2.

python -m venv peer && peer/bin/pip install openpi-client typing_extensions 'numpy<2'

python -I openpi_peer.py serve                  a server as openpi's: one coroutine per client, inference in the event loop
python -I openpi_peer.py time PORT CALLS        openpi's WebsocketClientPolicy against a server on PORT; overhead [ms] as JSON
python -I openpi_peer.py drive PORT HORIZON     its ActionChunkBroker for eval/openpi_client.py: observations in, actions out

-I, because a file beside this one is named as openpi's package.
"""

import asyncio
import json
import struct
import sys
import time

import numpy as np
import websockets.asyncio.server
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def images(seed: int) -> dict:
    """Two 224 x 224 images, a state and a prompt."""
    rng = np.random.default_rng(seed)
    return {
        "front": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "state": rng.normal(size=8).astype(np.float32),
        "prompt": "lift the red cube",
    }


async def converse(connection: websockets.asyncio.server.ServerConnection) -> None:
    """What openpi's server does for one client, restated: metadata, then one answer per observation."""
    packer = msgpack_numpy.Packer()
    await connection.send(packer.pack({}))
    previous_ms = None
    actions = np.zeros((10, 7), np.float32)
    try:
        while True:
            began = time.monotonic()
            msgpack_numpy.unpackb(await connection.recv())
            inference = time.monotonic()
            answer = {"actions": actions, "policy_timing": {"infer_ms": 0.0}}
            answer["server_timing"] = {"infer_ms": (time.monotonic() - inference) * 1e3}
            if previous_ms is not None:
                answer["server_timing"]["prev_total_ms"] = previous_ms
            await connection.send(packer.pack(answer))
            previous_ms = (time.monotonic() - began) * 1e3
    except websockets.exceptions.ConnectionClosed:
        return


async def serve() -> None:
    """Listen on a free port of this machine and print it."""
    options = {"compression": None, "max_size": None}
    async with websockets.asyncio.server.serve(converse, "127.0.0.1", 0, **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


def timed(port: int, calls: int) -> None:
    """Round trips less the inference that the server reports [ms]."""
    policy = WebsocketClientPolicy("127.0.0.1", port)
    observation = images(0)
    overhead_ms = []
    for _ in range(calls):
        began = time.perf_counter()
        answer = policy.infer(observation)
        overhead_ms.append((time.perf_counter() - began) * 1e3 - answer["policy_timing"]["infer_ms"])
    print(json.dumps(overhead_ms))


def drive(port: int, horizon: int) -> None:
    """Messages on stdin, each with its length before it: an observation gets an action back, `None` resets.

    openpi's client has no reset of the server but a new connection, which is made here as its users do.
    """
    policy = None
    while len(header := sys.stdin.buffer.read(4)) == 4:
        observation = msgpack_numpy.unpackb(sys.stdin.buffer.read(struct.unpack("<I", header)[0]))
        if observation is None:
            policy = None
            continue
        if policy is None:
            policy = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", port), action_horizon=horizon)
        reply = msgpack_numpy.packb(policy.infer(observation)["actions"])
        sys.stdout.buffer.write(struct.pack("<I", len(reply)) + reply)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    verb, *numbers = sys.argv[1:]
    if verb == "serve":
        asyncio.run(serve())
    else:
        {"time": timed, "drive": drive}[verb](*map(int, numbers))
