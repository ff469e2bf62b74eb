"""Robots over a network: what happens when the other end dies, lies or hangs."""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from robopolicy.client import pack, unpack
from robopolicy.control.robot import RobotError
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.robots.websocket import WebsocketRobot
from robopolicy.control.serving.access import tls_context, trusted
from robopolicy.types import Command, Observation
from tests.serving import running_server, self_signed
from tests.waiting import PATIENCE_S, wait_until

COMMAND_DT = 0.005


@pytest.fixture
def arm(panda) -> FakeRobot:
    return FakeRobot(panda, command_dt=COMMAND_DT)


def drive(send, home, seconds: float, speed_rad_s: float = 0.5) -> None:
    """Send commands that turn the last joint at a constant speed, reached gently."""
    for step in range(1, round(seconds / COMMAND_DT) + 1):
        t_s = step * COMMAND_DT
        turned = speed_rad_s * (t_s - 0.1 * (1 - np.exp(-t_s / 0.1)))
        send(np.add(home, [0, 0, 0, 0, 0, 0, turned]), t_s)
        time.sleep(COMMAND_DT)


@pytest.mark.parametrize("end", ["drop", "freeze"])
def test_a_client_that_vanishes_in_motion_leaves_a_robot_that_brakes(arm, panda, end):
    """Guards against: an arm that keeps its last velocity, or stops dead, when the cable is pulled or the client hangs."""
    with (
        RobotServer(arm, port=0, deadline_s=0.2) as server,
        connect(f"ws://127.0.0.1:{server.port}", close_timeout=0.1) as client,
    ):
        home = unpack(client.recv())["qpos"]
        drive(lambda q, t: client.send(pack({"qpos": q, "opening_m": 0.08, "stamp_s": t})), home, 0.5)
        wait_until(lambda: arm.qpos()[6] > home[6] + 0.05)
        vanished, moving = len(arm.commands), arm.qpos()[6]
        if end == "drop":
            client.socket.shutdown(2)
        wait_until(
            lambda: len(arm.commands) >= vanished + 3 and arm.commands[-3].joint_position_rad[6] == arm.qpos()[6]
        )
        stamps = np.array([command.stamp_s for command in arm.commands[vanished:]])
        rates = np.stack([command.joint_position_rad for command in arm.commands[vanished:]])
    assert not np.ptp(rates[-3:], axis=0).any()
    assert moving <= rates[-1, 6] < moving + 0.2
    for order, limit in enumerate((panda.velocity_rad_s, panda.acceleration_rad_s2, panda.jerk_rad_s3), start=1):
        rates = np.diff(rates, axis=0) / ((stamps[order:] - stamps[:-order]) / order)[:, None]
        assert (np.abs(rates) <= np.multiply(limit, 1.001)).all(), f"derivative {order}"


def test_a_robot_that_stopped_itself_says_so_and_a_new_connection_starts_anew(arm):
    """Guards against: commands that vanish without a word after the robot's own watchdog has stopped it."""
    with RobotServer(arm, port=0, deadline_s=0.3) as server:
        with WebsocketRobot(port=server.port, timeout_s=PATIENCE_S) as robot:
            home = robot.qpos()
            with contextlib.suppress(RobotError):  # on a busy machine the commands may cease before the last one
                drive(lambda q, t: robot.command(Command(q, 0.08, t)), home, 0.3)
            wait_until(lambda: robot._lost)
            with pytest.raises(RobotError, match=r"stopped itself: no command for 0\.3 s"):
                robot.command(Command(robot.qpos(), 0.08, 1.0))
        wait_until(lambda: not server._taken.locked())
        with WebsocketRobot(port=server.port, timeout_s=PATIENCE_S) as robot:
            robot.command(Command(robot.qpos(), 0.08, 0.0))


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(arm):
    """Guards against: a policy that, after one slow image, sees every earlier observation stamped as the present one."""
    look, slow = arm.observe, threading.Event()

    def observe() -> Observation:
        seen = look()
        if slow.is_set():
            slow.clear()
            time.sleep(0.4)
        return seen

    arm.observe = observe
    with RobotServer(arm, port=0) as server, WebsocketRobot(port=server.port, timeout_s=0.2) as robot:
        slow.set()
        arm.instruction = "early"
        with pytest.raises(RobotError, match=r"no observation within 0\.2 s"):
            robot.observe()
        arm.instruction = "now"
        robot.timeout_s = PATIENCE_S
        assert robot.observe().instruction == "now"


def test_a_reading_that_was_old_when_it_was_taken_stays_old_over_the_network(arm):
    """Guards against: a camera that stands still behind a socket, stamped as fresh by the socket's other end."""
    look, old_s = arm.observe, 0.0
    arm.observe = lambda: replace(look(), stamp_s=look().stamp_s - old_s)
    with RobotServer(arm, port=0) as server, WebsocketRobot(port=server.port, timeout_s=PATIENCE_S) as robot:
        asked_s = time.monotonic()
        assert asked_s <= robot.observe().stamp_s <= time.monotonic()
        old_s, asked_s = 30.0, time.monotonic()
        assert asked_s <= robot.observe().stamp_s + old_s <= time.monotonic()


def test_who_is_no_robot_or_taken_refuses_in_one_line(arm):
    """Guards against: a traceback of the websocket library for a second operator, or for the wrong port."""
    with (
        RobotServer(arm, port=0) as server,
        WebsocketRobot(port=server.port),
        pytest.raises(
            RobotError, match=r"the robot at 127\.0\.0\.1:\d+ refuses: another client is already driving this robot"
        ),
    ):
        WebsocketRobot(port=server.port)
    with running_server() as policy, pytest.raises(RobotError, match="is not a RobotServer; give a policy"):
        WebsocketRobot(port=policy.port)
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            with other.accept()[0] as peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(RobotError, match=r"no robot at 127\.0\.0\.1"):
            WebsocketRobot(port=other.getsockname()[1])
        thread.join()


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        pack([1, 2]),
        pack({"observe": "x"}),
        pack({"qpos": "x", "opening_m": 0.0, "stamp_s": 0.0}),
        pack({"qpos": np.zeros(7)}),
        pack({"qpos": np.full(7, np.nan), "opening_m": 0.0, "stamp_s": 0.0}),
        pack({"qpos": np.zeros(3), "opening_m": 0.0, "stamp_s": 0.0}),
        pack({"qpos": np.zeros(7), "opening_m": np.nan, "stamp_s": 0.0}),
        b"\x00" * 10_000,
    ],
    ids=["garbage", "list", "wish", "text", "incomplete", "nan", "too-few", "nan-gripper", "too-long"],
)
def test_hostile_commands_move_nothing_and_the_next_client_is_served(arm, message):
    """Guards against: one broken client that takes the robot's driver down with it."""
    home = arm.qpos().copy()
    with RobotServer(arm, port=0) as server:
        with connect(f"ws://127.0.0.1:{server.port}", close_timeout=0.1) as client:
            client.recv()
            client.send(message)
            time.sleep(0.05)
        wait_until(lambda: not server._taken.locked())
        np.testing.assert_array_equal(arm.qpos(), home)
        with WebsocketRobot(port=server.port, timeout_s=PATIENCE_S) as robot:
            np.testing.assert_allclose(robot.observe().obs["qpos"], home, atol=1e-6)


def test_a_robot_beyond_this_machine_is_moved_with_its_key_only_and_by_no_web_page(arm):
    """Guards against: an arm moved by anyone on the network, or by a page in the operator's browser."""
    with pytest.raises(ValueError, match="open to the network"):
        RobotServer(arm, host="0.0.0.0", port=0)
    with RobotServer(arm, port=0, api_key="a-key-of-16-chars") as server:
        for key in (None, "another-key-of-16"):
            with pytest.raises(RobotError, match="refuses: HTTP 401; is its key right"):
                WebsocketRobot(port=server.port, api_key=key)
        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(
                f"ws://127.0.0.1:{server.port}",
                origin="http://evil.example",
                additional_headers={"Authorization": "Api-Key a-key-of-16-chars"},
            ),
        ):
            pass
        with WebsocketRobot(port=server.port, api_key="a-key-of-16-chars", timeout_s=PATIENCE_S) as robot:
            np.testing.assert_allclose(robot.observe().obs["qpos"], arm.qpos(), atol=1e-6)


def test_a_robot_is_driven_over_tls(arm, tmp_path, caplog):
    """Guards against: commands and keys that anybody between the policy and the arm can read and change."""
    certificate, key = self_signed(tmp_path)
    with RobotServer(arm, port=0, tls=tls_context(certificate, key)) as server:
        with WebsocketRobot(port=server.port, tls=trusted(certificate), timeout_s=PATIENCE_S) as robot:
            np.testing.assert_allclose(robot.observe().obs["qpos"], arm.qpos(), atol=1e-6)
        with pytest.raises(RobotError, match="certificate verify failed"):
            WebsocketRobot(port=server.port, tls=trusted())
    with pytest.raises(ValueError, match=r"nowhere\.pem: .* expected a file of certificates"):
        trusted(tmp_path / "nowhere.pem")
    assert not caplog.records
    with RobotServer(arm, host="0.0.0.0", port=0, api_key="a-key-of-16-chars"):
        assert "not encrypted" in caplog.text


def test_only_one_client_drives(arm):
    """Guards against: two policies that pull at one arm."""
    with (
        RobotServer(arm, port=0) as server,
        WebsocketRobot(port=server.port),
        connect(f"ws://127.0.0.1:{server.port}", close_timeout=0.1) as second,
        pytest.raises(ConnectionClosed, match="another client"),
    ):
        second.recv(timeout=PATIENCE_S)


def test_a_robot_that_is_not_there_or_goes_away_is_one_line(arm):
    """Guards against: a traceback out of a thread instead of a reason."""
    with RobotServer(arm, port=0) as server:
        port = server.port
        robot = WebsocketRobot(port=port, timeout_s=0.2)
    wait_until(lambda: robot._lost is not None)
    with pytest.raises(RobotError, match="connection"):
        robot.observe()
    with contextlib.suppress(RobotError):
        robot.stop()
    with pytest.raises(RobotError, match=f"no robot at 127.0.0.1:{port}"):
        WebsocketRobot(port=port)


@pytest.mark.parametrize("method", ["command", "observe"])
def test_a_driver_that_crashes_is_named_at_the_other_end(arm, method):
    """Guards against: a fault in the driver's thread that shows only as a robot which sends nothing."""

    def crash(*_: object) -> None:
        raise ZeroDivisionError("gear ratio")

    with RobotServer(arm, port=0) as server, WebsocketRobot(port=server.port, timeout_s=PATIENCE_S) as robot:
        setattr(arm, method, crash)
        if method == "command":
            wait_until(lambda: robot._lost)
        with pytest.raises(RobotError, match="the robot's driver failed: ZeroDivisionError: gear ratio"):
            robot.observe()
