"""The client: one file, its codec, and its way with a server that comes, goes and refuses."""

import ast
import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robopolicy import client as client_module
from robopolicy.client import ChunkBroker, PolicyClient, PolicyServerError, ProtocolError, pack, unpack
from tests.serving import FakePolicy, observation, running_server
from tests.waiting import PATIENCE_S

SOURCE = Path(client_module.__file__)


def connect(server, **options) -> PolicyClient:
    return PolicyClient(
        "127.0.0.1", server.port, **{"timeout_s": PATIENCE_S, "connect_timeout_s": PATIENCE_S, **options}
    )


# -- the codec ---------------------------------------------------------------------------------------------------------

DTYPES = st.one_of(
    hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64))
)


@settings(max_examples=50, deadline=None)
@given(
    DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
)
def test_an_array_comes_back_as_it_was_sent(array):
    """Guards against: byte order, empty axes and zero dimensions that a hand-written codec loses."""
    back = unpack(pack({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_the_wire_format_is_openpis():
    """Guards against: another tag, type or key than openpi's, which its robots don't understand."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = msgpack.unpackb(pack({"a": array, "n": np.int64(5)}))
    assert raw["a"] == {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": [2, 3]}
    assert raw["n"] == {b"__npgeneric__": True, b"data": 5, b"dtype": "<i8"}


@pytest.mark.parametrize(
    "hostile",
    [
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "|O", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "(1000000,1000000)f8", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "V8", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": ["<f4"], b"shape": [2]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [-1, -2]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2**62, 2**62]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0, 2**62]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [3]},
        {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [True, 2]},
        {b"__ndarray__": True, b"data": "text", b"dtype": "<f4", b"shape": [1]},
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"\0" * 4, b"dtype": "<f4", b"shape": [1] * 9},
        {b"__npgeneric__": True, b"data": [1] * 100, b"dtype": "<f4"},
        {b"__npgeneric__": True, b"data": 10**18, b"dtype": "|u1"},
        {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"},
        {"deep": [[[[]] * 200] * 200]},
        {"text": "x" * 100_000},
        {"many": [0] * 1000},
        msgpack.Timestamp(5, 3),
    ],
)
def test_a_hostile_message_is_refused(hostile):
    """Guards against: a frame with dtype |O, which crashes a server, or a shape that reads beyond the buffer."""
    with pytest.raises(ProtocolError):
        unpack(msgpack.packb({"a": hostile}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\x80\x80", b"\x81\x01\x02"])
def test_bytes_that_are_no_message_are_refused(data):
    """Guards against: truncated or over-nested msgpack that escapes as some other exception."""
    with pytest.raises(ProtocolError):
        unpack(data)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_either_decode_or_raise_protocol_error(data):
    """Guards against: an exception of another kind, which would reach the server's catch-all instead of the client."""
    with contextlib.suppress(ProtocolError):
        unpack(data)


def test_objects_and_complex_numbers_are_not_packed():
    """Guards against: objects that need pickle, or complex numbers that the other side can't read."""
    for value in (np.array([object()]), np.array([1j]), object(), np.array(["a"])):
        with pytest.raises(ProtocolError, match="can't be packed"):
            pack({"a": value})


# -- talking to a server -----------------------------------------------------------------------------------------------


def test_infer_gives_actions_and_timings():
    """Guards against: a reply that breaks openpi's contract; `prev_total_ms` comes from the second on."""
    with running_server() as server, connect(server) as client:
        first, second = client.infer(observation(1)), client.infer(observation(2))
    assert first["actions"].shape == (4, 5)
    assert first["actions"].dtype == np.float32
    assert first["policy_timing"]["infer_ms"] > 0
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] > first["server_timing"]["infer_ms"] > 0
    assert second["actions"][0].tolist() == [2.0, 9.0, 4.0, 7.0, 0.0]


def test_metadata_says_what_to_send():
    """Guards against: metadata from which a robot engineer can't tell what to send."""
    with running_server() as server, connect(server) as client:
        metadata = client.metadata
    assert metadata["observation"] == {
        "qpos": {"shape": [3], "dtype": "float32"},
        "front": {"shape": [8, 8, 3], "dtype": "uint8"},
        "prompt": {"shape": [], "dtype": "str"},
    }
    assert metadata["chunk"] == 4
    assert metadata["control_rate_hz"] == 20.0
    assert metadata["action_spec"]["arm"] == [0, 1, 2, 3, 4]
    assert metadata["robopolicy_version"]


def test_reset_begins_a_new_episode():
    """Guards against: a memory kept over an episode's end."""
    with running_server() as server, connect(server) as client:
        client.infer(observation())
        client.reset()
        assert client.infer(observation())["actions"][0, 0] == 1
        assert client.infer(observation())["actions"][0, 0] == 2
        assert client.reconnects == 0


def test_reset_reconnects_where_the_server_knows_no_reset_key():
    """Guards against: a reset that openpi's servers ignore, since they know only the connection's end."""
    with running_server() as server, connect(server) as client:
        client.infer(observation())
        client.metadata = {}
        client.reset()
        assert client.infer(observation())["actions"][0, 0] == 1
        assert client.reconnects == 1


def test_a_refused_observation_raises_with_the_servers_words_and_the_next_call_works():
    """Guards against: a refused observation that gives no reason, or that needs a restart of the robot."""
    with running_server() as server, connect(server) as client:
        with pytest.raises(
            PolicyServerError, match=r"lacks 'qpos'. Expected: qpos, front, prompt. Received: front, prompt"
        ):
            client.infer({"front": observation()["front"], "prompt": "lift"})
        assert client.infer(observation())["actions"][0, 0] == 1


def test_the_client_survives_a_server_that_restarts(caplog):
    """Guards against: a robot that must be restarted with its server, or that isn't told of its new memory."""
    with running_server() as server:
        client = connect(server)
        client.infer(observation())
        port = server.port
    with running_server(port=port):
        assert client.infer(observation())["actions"][0, 0] == 1
        assert client.reconnects == 1
        assert "memory starts again" in caplog.text
        client.close()


def test_a_server_that_does_not_answer_raises_timeout_and_its_late_answer_is_not_mistaken():
    """Guards against: a late answer taken for the next one, which would lag by one observation for ever."""
    policy = FakePolicy()
    with running_server(policy) as server, connect(server) as client:
        client.infer(observation(1))
        client._timeout_s = 0.3
        policy.hold.clear()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            client.infer(observation(1))
        policy.hold.set()
        client._timeout_s = PATIENCE_S
        assert client.infer(observation(5))["actions"][0].tolist()[:2] == [1.0, 15.0]


def test_no_server_is_a_connection_error_in_time():
    """Guards against: a wrong port that hangs a robot's start."""
    with pytest.raises(ConnectionError, match=r"no policy server at ws://127\.0\.0\.1:1 within 0\.2 s"):
        PolicyClient("127.0.0.1", 1, connect_timeout_s=0.2)


def test_the_client_waits_for_a_server_that_comes_up_later():
    """Guards against: a robot that must be started after its server."""
    with running_server() as first:
        port = first.port
    answers = []
    thread = threading.Thread(target=lambda: answers.append(PolicyClient("127.0.0.1", port).infer(observation())))
    thread.start()
    with running_server(port=port):
        thread.join(PATIENCE_S)
    assert answers[0]["actions"][0, 0] == 1


def test_a_wrong_key_is_a_permission_error_at_once():
    """Guards against: a wrong key that is retried for a minute."""
    with running_server(api_key="k" * 16) as server:
        with pytest.raises(PermissionError, match="refuses this api_key"):
            connect(server, api_key="wrong")
        with connect(server, api_key="k" * 16) as client:
            assert client.infer(observation())["actions"].shape == (4, 5)


def test_a_broker_gives_one_action_at_a_time_and_asks_again_after_replan_every():
    """Guards against: more or fewer actions executed than the policy was trained for, which breaks its frame stride."""
    policy = FakePolicy()
    with running_server(policy) as server, connect(server) as client:
        broker = ChunkBroker(client, replan_every=3)
        actions = [broker.infer(observation()) for _ in range(7)]
        assert [action[4] for action in actions] == [0, 1, 2, 0, 1, 2, 0]
        assert [action[0] for action in actions] == [1, 1, 1, 2, 2, 2, 3]
        broker.reset()
        assert broker.infer(observation())[0] == 1
        assert server.metrics.value("frame_stride_warnings_total") == 1
        with pytest.raises(ValueError, match=r"use 1 \.\. 4"):
            ChunkBroker(client, replan_every=5)


# -- one file ----------------------------------------------------------------------------------------------------------


def test_the_file_is_python_3_9():
    """Guards against: syntax of a later Python, which keeps older robots out."""
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    annotations = [
        node.annotation for node in ast.walk(tree) if isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation
    ]
    annotations += [node.returns for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.returns]
    unions = [inner for a in annotations for inner in ast.walk(a) if isinstance(inner, ast.BinOp)]
    assert not unions


COPIED = """
import sys
sys.path.insert(0, {folder!r})
allowed = {{"numpy", "msgpack", "websockets", "client"}} | set(sys.stdlib_module_names)
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
from client import PolicyClient
import numpy as np
with PolicyClient("127.0.0.1", {port}) as client:
    obs = {{"qpos": np.ones(3), "front": np.zeros((8, 8, 3), np.uint8), "prompt": "go"}}
    print(client.infer(obs)["actions"].shape)
"""


def test_the_file_works_copied_alone_with_every_other_import_blocked(tmp_path):
    """Guards against: an import that the copied file doesn't find on a robot without our package."""
    (tmp_path / "client.py").write_text(SOURCE.read_text())
    with running_server() as server:
        code = COPIED.format(folder=str(tmp_path), port=server.port)
        result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.stdout.strip() == "(4, 5)", result.stderr


@pytest.mark.slow
def test_the_file_works_in_an_environment_of_its_three_packages(tmp_path):
    """Guards against: a dependency that shows only where nothing else is installed."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    packages = ["numpy", "msgpack", "websockets"]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)
    (tmp_path / "client.py").write_text(SOURCE.read_text())
    with running_server() as server:
        code = COPIED.format(folder=str(tmp_path), port=server.port)
        result = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.stdout.strip() == "(4, 5)", result.stderr
