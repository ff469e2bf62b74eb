"""The server against clients that are slow, wrong, hostile or many."""

import contextlib
import http.client
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from robopolicy.client import PolicyClient, pack, unpack
from robopolicy.control.server import PolicyServer, ServerLimits, serve
from robopolicy.control.serving.access import tls_context
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.control.serving.protocol import ObservationReader
from tests.serving import LOW_DIM_SPEC, SPEC, FakePolicy, observation, running_server, self_signed
from tests.waiting import PATIENCE_S, wait_until

KEY = "a-key-of-16-chars"
READER = ObservationReader(SPEC, KeyMapping())


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def open_raw(port: int, **options):
    """A websocket that has heard the metadata."""
    connection = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, close_timeout=1, **options)
    connection.__enter__()
    connection.recv(timeout=PATIENCE_S)
    return connection


def refusal(port: int, payload: bytes | str) -> str:
    """What the server says to a message before it closes with 1011."""
    connection = open_raw(port)
    connection.send(payload)
    said = connection.recv(timeout=PATIENCE_S)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd.code == 1011
    return said


# -- the protocol ------------------------------------------------------------------------------------------------------


def test_health_and_metrics_answer_over_http():
    """Guards against: a load balancer or Prometheus that gets no reply over HTTP."""
    with running_server() as server, PolicyClient("127.0.0.1", server.port) as client:
        client.infer(observation())
        assert get(server.port, "/healthz") == (200, "OK\n")
        status, page = get(server.port, "/metrics")
    assert status == 200
    assert "robopolicy_requests_total 1" in page
    assert "robopolicy_connections 1" in page


def test_an_error_is_a_text_frame_and_a_close_without_a_path():
    """Guards against: a traceback with paths sent to the peer, as openpi's server does."""
    with running_server() as server:
        said = refusal(server.port, pack(observation(666.0)))
        assert said == "internal error; see the server's log"
        assert "received a text message" in refusal(server.port, "hello")


def test_a_connection_is_an_episode_and_many_run_at_once():
    """Guards against: one client's reset or end that touches another's memory."""
    with running_server() as server, ExitStack() as stack:
        clients = [stack.enter_context(PolicyClient("127.0.0.1", server.port)) for _ in range(5)]
        for _ in range(3):
            answers = [client.infer(observation(float(number)))["actions"][0] for number, client in enumerate(clients)]
        assert [answer[0] for answer in answers] == [3] * 5
        assert [answer[1] for answer in answers] == [9.0 * number for number in range(5)]
        clients[2].reset()
        assert clients[2].infer(observation())["actions"][0, 0] == 1
        assert clients[3].infer(observation())["actions"][0, 0] == 4


# -- who may come in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])
def test_a_public_address_needs_a_key(host):
    """Guards against: a server that anyone on the network can use to move a robot."""
    with pytest.raises(ValueError, match=r"open to the network; give --api-key-file, or listen on 127\.0\.0\.1"):
        PolicyServer(FakePolicy(), READER, host=host)


@pytest.mark.parametrize("header", [None, "", "Api-Key wrong", KEY, f"Bearer {KEY}", f"Api-Key {KEY}x", "Api-Key \xff"])
def test_a_wrong_key_is_turned_away(header):
    """Guards against: a key that the client sends and the server never checks, as in openpi."""
    headers = {} if header is None else {"Authorization": header}
    with running_server(api_key=KEY) as server:
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"ws://127.0.0.1:{server.port}", additional_headers=headers),
        ):
            pass
        assert refused.value.response.status_code == 401
        assert get(server.port, "/metrics")[0] == 401
        assert get(server.port, "/healthz")[0] == 200
        assert get(server.port, "/metrics", {"Authorization": f"Api-Key {KEY}"})[0] == 200


def test_a_web_page_is_turned_away():
    """Guards against: a page in the operator's browser that reaches a server on loopback."""
    with running_server() as server:
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"ws://127.0.0.1:{server.port}", origin="http://evil.example"),
        ):
            pass
        assert refused.value.response.status_code == 403


def test_more_clients_than_allowed_are_told_so_and_room_is_given_again():
    """Guards against: connections whose memory adds up without a limit, or a limit that stays reached."""
    with running_server(limits=ServerLimits(max_connections=2)) as server:
        first, second = open_raw(server.port), open_raw(server.port)
        with pytest.raises(InvalidStatus) as refused:
            open_raw(server.port)
        assert refused.value.response.status_code == 503
        first.close()
        with PolicyClient("127.0.0.1", server.port, connect_timeout_s=5.0) as client:
            assert client.infer(observation())["actions"][0, 0] == 1
        second.close()


def test_wss_serves_with_a_certificate(tmp_path):
    """Guards against: a key that is sent unencrypted to another machine."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trust = ssl.create_default_context(cafile=str(certificate))
    with running_server(tls=context) as server:
        with PolicyClient("127.0.0.1", server.port, tls=trust) as client:
            assert client.infer(observation())["actions"].shape == (4, 5)
        with pytest.raises(ConnectionError, match="certificate verify failed"):
            PolicyClient(f"wss://127.0.0.1:{server.port}", None, connect_timeout_s=0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mapping": "nosuch"}, "key_mapping 'nosuch' is unknown"),
        ({"host": "no.such.host.invalid"}, "give an address of this machine"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(options, words):
    """Guards against: a traceback from inside ssl or socket that names no option."""
    with pytest.raises(ValueError, match=words):
        serve(FakePolicy(), **options)
    with pytest.raises(ValueError, match="--tls-cert and --tls-key belong together"):
        tls_context("a.pem", None)
    with pytest.raises(ValueError, match="expected a matching pair of PEM files"):
        tls_context("a.pem", "b.pem")


def test_a_missing_package_names_the_extra_that_installs_it():
    """Guards against: `No module named 'websockets'`, which names no extra to install."""
    code = "import sys; sys.modules['websockets'] = None; import robopolicy.control.server"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert "needs websockets, which isn't installed; pip install 'robopolicy[serve]'" in result.stderr


# -- the end -----------------------------------------------------------------------------------------------------------


def test_stopping_answers_what_is_under_way():
    """Guards against: a robot in motion that waits for a reply that never comes."""
    policy, answers = FakePolicy(), []
    with running_server(policy, limits=ServerLimits(drain_timeout_s=PATIENCE_S)) as server:
        idle, client = open_raw(server.port), PolicyClient("127.0.0.1", server.port, timeout_s=PATIENCE_S)
        client.infer(observation())
        policy.hold.clear()
        policy.asked.clear()
        thread = threading.Thread(target=lambda: answers.append(client.infer(observation())))
        thread.start()
        assert policy.asked.wait(PATIENCE_S)
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd.code == 1001
        policy.hold.set()
        thread.join(PATIENCE_S)
        server.stop()  # once more does no harm
    assert answers[0]["actions"][0, 0] == 2


SERVE = """
import sys
from robopolicy.control.server import serve
from tests.serving import FakePolicy
serve(FakePolicy(), port=0, on_ready=lambda host, port: print(port, flush=True))
"""


def test_sigterm_ends_the_process_cleanly():
    """Guards against: a traceback when a service manager stops the server, which looks like a crash."""
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    client = PolicyClient("127.0.0.1", port)
    client.infer(observation())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    client.close()
    assert process.returncode == 0
    assert errors == ""


# -- attacks -----------------------------------------------------------------------------------------------------------

PATIENT = ServerLimits(handshake_timeout_s=300.0, message_timeout_s=300.0, keepalive_s=300.0)
"""So that of several limits only the one acts that a test is about."""


def closes_within(sock: socket.socket, seconds: float) -> bool:
    """Whether the server ends this connection in time."""
    sock.settimeout(seconds)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_a_handshake_that_never_ends_is_dropped():
    """Guards against: slow-loris: a byte now and then that holds a connection for ever."""
    with (
        running_server(limits=replace(PATIENT, handshake_timeout_s=0.5)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert closes_within(sock, PATIENCE_S)


def test_a_message_that_never_ends_is_dropped():
    """Guards against: fragments with pongs between them, which pass a mere keepalive."""
    with running_server(limits=replace(PATIENT, message_timeout_s=0.5)) as server:
        connection = open_raw(server.port)
        connection.socket.sendall(b"\x02\x81\0\0\0\0x")  # first fragment of a binary message, one byte
        began = time.monotonic()
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=PATIENCE_S)
        assert time.monotonic() - began > 0.3


def test_a_frame_that_never_ends_is_dropped():
    """Guards against: a client inside a frame, which can't answer the keepalive and stays."""
    with running_server(limits=replace(PATIENT, keepalive_s=0.5)) as server:
        sock = open_raw(server.port).socket
        sock.sendall(b"\x82\xff" + (100_000).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 100)
        assert closes_within(sock, PATIENCE_S)


def test_a_claim_of_a_gigabyte_is_refused_at_its_header():
    """Guards against: memory set aside for a gigabyte that a header only claims."""
    with running_server() as server:
        connection = open_raw(server.port)
        connection.socket.sendall(b"\x82\xff" + (2**30).to_bytes(8, "big") + b"\0\0\0\0")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd.code == 1009


def test_a_low_dim_policy_takes_smaller_messages_than_one_with_cameras():
    """Guards against: messages with images accepted for a policy that has no camera."""
    with running_server(spec=LOW_DIM_SPEC) as server:
        connection = open_raw(server.port)
        with contextlib.suppress(ConnectionClosed):  # the server may close before all of it is sent
            connection.send(bytes(2 * 2**20))
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=PATIENCE_S)


def test_connections_that_say_nothing_are_capped():
    """Guards against: thousands of silent connections, which would use up the process's file descriptors."""
    with running_server(limits=replace(PATIENT, max_connections=4)) as server, ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(40)]
        wait_until(lambda: sum(closes_within(sock, 0.01) for sock in silent) >= 20)


def test_strangers_who_hold_connections_keep_no_client_out():
    """Guards against: 200 silent connections without a key that silence /healthz and lock the robot out."""
    with running_server(api_key=KEY, limits=PATIENT) as server, ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        for _ in range(200):
            stack.enter_context(socket.create_connection(address))
        for _ in range(3):
            with PolicyClient("127.0.0.1", server.port, KEY, connect_timeout_s=PATIENCE_S) as client:
                assert client.infer(observation())["actions"].shape == (4, 5)
            assert get(server.port, "/healthz") == (200, "OK\n")
            for _ in range(20):
                stack.enter_context(socket.create_connection(address))


def test_a_reset_alone_is_answered():
    """Guards against: a client that waits for ever for the answer to its reset."""
    with running_server() as server, PolicyClient("127.0.0.1", server.port) as client:
        first = client.infer(observation())["actions"]
        client.infer(observation())
        assert client.infer({"reset": True}) == {"reset": True}
        np.testing.assert_array_equal(client.infer(observation())["actions"], first)


def test_large_images_of_others_do_not_make_a_client_late():
    """Guards against: images resized on the event loop, while everybody else waits."""
    large = pack(observation(front=np.zeros((700, 1900, 3), np.uint8)))
    with running_server() as server, PolicyClient("127.0.0.1", server.port) as client, ExitStack() as stack:
        others = [open_raw(server.port) for _ in range(4)]
        done = threading.Event()

        def send(connection) -> None:
            while not done.is_set():
                connection.send(large)
                connection.recv(timeout=PATIENCE_S)

        threads = [threading.Thread(target=send, args=(other,), daemon=True) for other in others]
        for thread in threads:
            thread.start()
        stack.callback(done.set)
        for _ in range(20):
            assert client.infer(observation())["actions"].shape == (4, 5)
        done.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert server._inference._readers._threads


def test_mistakes_of_clients_fill_no_log(caplog):
    """Guards against: a disk filled by one stranger's broken messages."""
    with running_server() as server:
        for _ in range(80):
            connection = open_raw(server.port)
            connection.send(b"\xc1" * 100)
            connection.recv(timeout=PATIENCE_S)
            connection.close()
    assert len([record for record in caplog.records if "msgpack" in record.getMessage()]) == 60
    assert caplog.text.count("the rest is not logged") == 1


def hostile_message(rng: np.random.Generator) -> bytes | str:
    """One of the frames that servers of this kind have fallen over."""
    good = pack(observation(float(rng.normal())))
    array = {b"__ndarray__": True, b"data": bytes(int(rng.integers(0, 64))), b"dtype": "<f4", b"shape": [3]}
    dtypes = ["|O", "O8", "|V8", "<c8", "<U4", "|S4", "(1000000,)f8", "f4,f4", "<M8[s]", "\0", "", "x" * 1000]
    shapes = [[-1], [2**63 - 1, 2], [2**40], [0, 2**62], [1] * 40, [True], ["3"], [3.0], None, {}, [[3]]]
    kinds = [
        lambda: msgpack.packb(observation_of({**array, b"dtype": str(rng.choice(dtypes))})),
        lambda: msgpack.packb(observation_of({**array, b"shape": shapes[rng.integers(len(shapes))]})),
        lambda: msgpack.packb(observation_of(array)),
        lambda: b"\x91" * int(rng.integers(1, 5000)) + b"\x90",
        lambda: b"\x81\xa1a" * int(rng.integers(1, 5000)) + b"\x80",
        lambda: good[: rng.integers(0, len(good))],
        lambda: flipped(good, rng),
        lambda: rng.bytes(int(rng.integers(0, 500))),
        lambda: "text" * int(rng.integers(0, 50)),
        lambda: b"\xc6\x40\x00\x00\x00",  # 1 GB of bytes, says msgpack
        lambda: b"\xdd\x3f\xff\xff\xff",  # a billion elements
        lambda: msgpack.packb([[[]] * 250] * 200),
        lambda: pack(observation(qpos=np.full(3, [np.nan, np.inf, -np.inf][rng.integers(3)]))),
        lambda: pack(observation(front=np.full((8, 8, 3), np.nan, np.float32))),
        lambda: pack(observation(front=np.zeros(tuple(rng.integers(0, 50, 3)), np.uint8))),
        lambda: pack({"wrong": 1, "keys\x1b[2J" * 10: 2}),
        lambda: msgpack.packb(observation_of({b"__npgeneric__": True, b"data": 10**18, b"dtype": "|u1"})),
    ]
    return kinds[rng.integers(len(kinds))]()


def observation_of(qpos: object) -> dict:
    return {"qpos": qpos, "prompt": "lift"}


def flipped(message: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(message)
    for place in rng.integers(0, len(message), 8):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def attack(frames: int, seed: int) -> None:
    """Send hostile frames while a good client is served; nothing may leak, hang, fall over or grow."""
    rng = np.random.default_rng(seed)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with running_server() as server, PolicyClient("127.0.0.1", server.port) as good:
        for number in range(frames):
            connection = open_raw(server.port)
            try:
                connection.send(hostile_message(rng))
                said = connection.recv(timeout=PATIENCE_S)
            except ConnectionClosed:
                continue
            finally:
                connection.close()
            if isinstance(said, bytes):  # a flipped bit may hit an image: then it is an observation like any other
                assert np.isfinite(unpack(said)["actions"]).all()
                continue
            assert len(said) <= 500
            assert not any(leak in said for leak in ("Traceback", ".py", "/home", os.getcwd(), 'File "', "\x1b"))
            assert "internal error" not in said
            if number % 25 == 0:
                assert good.infer(observation())["actions"].shape == (4, 5)
        assert good.infer(observation())["actions"].shape == (4, 5)
        assert good.reconnects == 0
        assert server.metrics.value("internal_errors_total") == 0
        assert server.metrics.value("errors_total") > frames / 2
        wait_until(lambda: server.metrics.value("connections") == 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


def test_500_hostile_frames():
    """Guards against: one unauthenticated frame that crashes the server."""
    attack(500, seed=0)


@pytest.mark.slow
def test_10000_hostile_frames():
    """Guards against: rarer hostile frames than 500 draws contain."""
    attack(10_000, seed=1)
