"""A second arm that the operator moves by hand, served by a `RobotServer`; the robot repeats its motion."""

import threading
from dataclasses import dataclass

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError, register
from robopolicy.control.operators.base import OperatorContext
from robopolicy.control.robot import Robot
from robopolicy.control.robots.base import RobotContext
from robopolicy.control.robots.websocket import WebsocketOptions, make_websocket

ENGAGED = "engaged"
"""Observation key (1,): above 0.5 while the operator controls the robot, such as while a pedal is pressed."""


@dataclass(frozen=True)
class LeaderOptions(WebsocketOptions):
    """Options of `leader`: an arm with the robot's joints; it reports `qpos` [rad], `engaged` and optionally `gripper` [m]."""


class LeaderOperator:
    """Repeats the leader's motion from the moment of taking over; the two arms need not start in the same pose.

    Args:
        leader: a robot whose driver ignores commands; observed in a separate thread.
        context: facts about the run.

    Raises:
        ConfigError: the leader's number of joints differs from the robot's, it doesn't observe `engaged`, or the policy
            commands several grippers.
    """

    def __init__(self, leader: Robot, context: OperatorContext) -> None:
        self.leader, self.context = leader, context
        self._closing = threading.Event()
        self._obs = dict(leader.observe().obs)
        if ENGAGED not in self._obs:
            leader.stop()
            raise ConfigError(
                f"--intervene: the leader doesn't show {ENGAGED!r}; it shows {', '.join(sorted(self._obs))}"
            )
        if leader.profile.joints != context.profile.joints:
            leader.stop()
            raise ConfigError(
                f"--intervene: the leader has {leader.profile.joints} joints, the robot {context.profile.joints}"
            )
        try:
            home = np.asarray(context.profile.home_rad)
            context.joint_action(home, 0.0, home)
        except ValueError as error:
            leader.stop()
            raise ConfigError(f"--intervene: {error}") from None
        self._offset: np.ndarray | None = None
        self._closed = 0.0
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._look, name="leader", daemon=True)
        self._thread.start()

    def act(
        self, t_s: float, qpos: Float[np.ndarray, " joints"], policy_action: np.ndarray | None
    ) -> np.ndarray | None:
        """See `Operator`."""
        if self._failed is not None:
            raise self._failed
        obs, profile = self._obs, self.leader.profile
        if float(np.ravel(obs[ENGAGED])[0]) <= 0.5:
            self._offset = None
            if policy_action is not None:
                self._closed = self.context.closed(policy_action)
            return None
        leader = np.asarray(obs["qpos"], np.float64)
        if self._offset is None:
            self._offset = qpos - leader
        if "gripper" in obs and profile.opening_m > 0:
            self._closed = 1.0 - float(np.ravel(obs["gripper"])[0]) / profile.opening_m
        return self.context.joint_action(leader + self._offset, self._closed, qpos)

    def close(self) -> None:
        """See `Operator`."""
        self._closing.set()
        self._thread.join(timeout=1.0)
        self.leader.stop()

    def _look(self) -> None:
        while not self._closing.wait(self.context.control_dt / 2):
            try:
                self._obs = dict(self.leader.observe().obs)
            except Exception as error:  # raised by the next call of `act`
                self._failed = error
                return


@register("operator", "leader", LeaderOptions)
def make_leader(options: LeaderOptions, context: OperatorContext) -> LeaderOperator:
    """A second arm that the operator moves by hand: ws://HOST:PORT or wss://HOST:PORT."""
    leader = make_websocket(WebsocketOptions(**vars(options)), RobotContext(control_dt=context.control_dt))
    return LeaderOperator(leader, context)
