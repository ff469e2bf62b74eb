"""The control loop: a policy's actions -> limited commands on a fixed grid, and a controlled stop when anything fails.

The policy observes and predicts in its own thread (`inference`). The loop runs in the caller's thread: it sends a command
every `command_dt`, takes whatever chunks have arrived, and never waits for the other thread.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from robopolicy.control.drive import RobotDrive
from robopolicy.control.executor import ChunkExecutor, StaleChunkError
from robopolicy.control.inference import Inference, TimedChunk
from robopolicy.control.limits import base_target, limit_targets, wrong_first_target, wrong_position
from robopolicy.control.robot import Operator, Recorder, Robot, RobotError, StepRecord, commands_per_step, driven
from robopolicy.control.statistics import LoopStatistics
from robopolicy.control.targets import joint_targets
from robopolicy.control.timing import Clock, FixedGrid, SystemClock, request_realtime, undisturbed
from robopolicy.types import ActionSpec, Command

logger = logging.getLogger(__name__)

CONTROL_PRIORITY = 20
"""Real-time priority of the control thread, if `LoopOptions.priority` asks for one."""
POLL_S = 0.001
"""Polling interval for a chunk between two commands [s]."""
ACT_S = 0.002
"""Time kept free before the next command to turn an action into a motion [s]; at most a quarter of `command_dt` is used."""


@dataclass(frozen=True)
class LoopOptions:
    """How long a control loop waits, and what it does with its commands."""

    deadline_s: float = 0.25
    """Age of the newest chunk's observation at which the robot is stopped [s]."""
    patience_s: float | None = None
    """How long a control step waits for the chunk of its own observation, while commands continue, before it acts on an
    earlier one [s]; None: half a control step."""
    startup_s: float = 10.0
    """How long the first chunk may take [s]."""
    first_jump_rad: float | None = None
    """Largest distance of the first absolute target from the measured joint position [rad]; None: the profile's."""
    dry_run: bool = False
    """Compute and record commands, but do not send them."""
    priority: bool = False
    """Ask for real-time priority for the calling thread; if it is refused, the loop logs that and runs without."""


class ControlLoop(RobotDrive):
    """Controls one robot with one policy.

    Args:
        robot: the robot to control.
        inference: source of the chunks.
        executor: decides which action of which chunk is executed; without batch axes.
        action_spec: meaning of the action columns.
        options: waiting times, dry run and priority; None: the defaults.
        recorder: called with every control step.
        operator: may take the robot over, in any control step; their actions are limited and smoothed like the policy's.
        clock: source of time; None: the machine's.

    Raises:
        ValueError: the robot can't execute such actions, or its grippers or control rate do not match.
    """

    def __init__(
        self,
        robot: Robot,
        inference: Inference,
        executor: ChunkExecutor,
        action_spec: ActionSpec,
        *,
        options: LoopOptions | None = None,
        recorder: Recorder | None = None,
        operator: Operator | None = None,
        clock: Clock | None = None,
    ) -> None:
        control_dt, self.options = executor.control_dt, options or LoopOptions()
        _require_fits(robot, action_spec, control_dt)
        self._commands_per_step = commands_per_step(robot, control_dt)
        clock = clock or SystemClock()
        super().__init__(robot, control_dt, clock, self.options.deadline_s, self.options.dry_run)
        self.inference, self.executor, self.action_spec = inference, executor, action_spec
        patience_s = self.options.patience_s
        self._patience_s = control_dt / 2 if patience_s is None else patience_s
        self.recorder, self.operator, self._operated = recorder, operator, False
        if self.options.priority and not request_realtime(CONTROL_PRIORITY):
            logger.warning("real-time priority was refused; commands may be late when the machine is busy")
        self.stopped: str | None = None
        """Why the robot was stopped; None while armed."""

    def rearm(self) -> None:
        """Allow the robot to move again after a stop, from its current position.

        Raises:
            ValueError: a joint is beyond its limits.
        """
        measured = driven(self.robot, "qpos")
        if np.abs(measured - self.smoother.state[0]).max() > self.robot.profile.first_jump_rad / 4:
            self.smoother.start(measured)
        self.stopped = None

    def run(self, duration_s: float, finished: Callable[[], bool] = lambda: False) -> LoopStatistics:
        """Drive the robot for one episode: until `duration_s` has passed, `finished()` is True, or something fails.

        The episode begins with an empty memory and no chunk, and ends with the robot at rest.
        After a controlled stop, `stopped` holds the reason, and `rearm` must be called before the next run. Anything
        unexpected, Ctrl-C included, brakes the robot, stops it permanently, and is raised.
        """
        if self.stopped is not None:
            raise RobotError(f"not armed: {self.stopped}; call rearm() first")
        with undisturbed():
            self._begin()
            grid = FixedGrid(self.clock, self.robot.command_dt)
            try:
                with self._braked_at_last(grid):
                    self._drive(grid, self.clock.now() + duration_s, finished)
            except RobotError as error:  # the robot is lost or has stopped itself: it accepts no more commands
                self._stop(str(error), grid)
        if self.stopped is not None:
            self.statistics.stop_s.append(max(self._rested_s - self._stop_began_s, 0.0))
        return self.statistics

    def _begin(self) -> None:
        """Clear the state of the last episode."""
        self.executor.reset()
        self.inference.reset()
        self._arrived: list[TimedChunk] = []
        self._newest_s: float | None = None
        self._began_s = self._rested_s = self._step_s = self.clock.now()
        self._step, self._to_act = -1, False
        self._moved = self._operated = False
        self._limited: list[str] = []

    def _drive(self, grid: FixedGrid, ends_s: float, finished: Callable[[], bool]) -> None:
        """Send commands until the end or a stop, then bring the robot to rest."""
        while self.stopped is None and self.clock.now() < ends_s and not finished():
            self._send_next(grid)
            if self.stopped is None:
                self._run(grid)
            self._wait_within_step(grid)
        self.statistics.waiting += self._to_act  # a step cut short by the episode's end
        if self.stopped is None and self._newest_s is None and self.clock.now() >= ends_s:
            self._stop(f"the policy did not answer within {ends_s - self._began_s:g} s", grid)
        self._brake()
        self._follow_to_rest(grid)

    def _run(self, grid: FixedGrid) -> None:
        """Begin each control step once, and act on it when its chunk has arrived, or after `patience_s`."""
        step = grid.index // self._commands_per_step
        if step > self._step and self._to_act:  # ticks were missed: act late
            self._collect(grid)
            if self.stopped is None:
                self._act(grid)
        if step > self._step and self.stopped is None:
            try:
                self._begin_step(step, grid)
            except Exception as error:  # whatever a robot or a network may raise
                self._stop(f"{type(error).__name__}: {error}", grid)
        self._act_when_due(grid)

    def _wait_within_step(self, grid: FixedGrid) -> None:
        """Between two commands, wait for the chunk, but only if the next command belongs to the next control step.

        With one command per control step, acting only at the next command would always be one step late.
        """
        if (grid.index + 1) // self._commands_per_step == self._step:
            return
        period_s = self.robot.command_dt
        last_s = min(self._step_s + self._patience_s, grid.t_s + period_s - min(ACT_S, period_s / 4))
        last = False
        while self._to_act and self.stopped is None and not last:
            self.clock.sleep_until(min(self.clock.now() + POLL_S, last_s))
            last = self.clock.now() >= last_s
            self._act_when_due(grid, last)

    def _act_when_due(self, grid: FixedGrid, last: bool = False) -> None:
        """Collect chunks; act on the current step when its own chunk has arrived, if it needs none, or when waiting is over."""
        self._collect(grid)
        over = last or self.clock.now() >= self._step_s + self._patience_s
        if self.stopped is None and self._to_act and (self._fresh() is not None or not self._due or over):
            self._act(grid)

    def _collect(self, grid: FixedGrid) -> None:
        """Take the finished chunks, check their time stamps, and stop the robot if none arrived in time."""
        try:
            chunks = self.inference.finished()
        except Exception as error:  # whatever a policy, a camera or a network may raise
            self._stop(f"{type(error).__name__}: {error}", grid)
            return
        now_s = self.clock.now()
        for chunk in chunks:
            if wrong := chunk.mistimed(now_s, self.executor.control_dt, self.options.deadline_s):
                self._stop(wrong, grid)
                return
            self._newest_s = chunk.observation.stamp_s
            self.statistics.latency_s.append(chunk.latency_s)
            self.statistics.slack_s.append(self._newest_s + self.executor.control_dt - now_s)
        self._arrived += chunks
        since_s, limit_s = (
            (self._began_s, self.options.startup_s)
            if self._newest_s is None
            else (self._newest_s, self.options.deadline_s)
        )
        if self.stopped is None and now_s - since_s > limit_s:
            self._stop(f"no fresh chunk within {limit_s:g} s", grid)

    def _begin_step(self, step: int, grid: FixedGrid) -> None:
        statistics = self.statistics
        self._step_s = grid.origin_s + step * self.executor.control_dt
        statistics.delay_s.append(self.clock.now() - self._step_s)
        statistics.elapsed_s += (step - self._step) * self.executor.control_dt if self._step >= 0 else 0.0
        statistics.missed_steps += step - self._step - 1
        statistics.steps += 1
        self._step, self._to_act = step, True
        self._due = bool(self.executor.needs_chunk(self._step_s))
        missed = self.inference.missed
        self.inference.request(self._step_s, self.executor.prefix(self._step_s))
        statistics.missed_frames += self.inference.missed - missed

    def _fresh(self) -> TimedChunk | None:
        """The chunk of the current control step's own observation, if it has arrived."""
        earliest_s = self._step_s - self.executor.control_dt / 2
        return next((chunk for chunk in self._arrived if chunk.observation.stamp_s >= earliest_s), None)

    def _act(self, grid: FixedGrid) -> None:
        """Take the current control step's action and aim for its targets."""
        fresh, statistics = self._fresh(), self.statistics
        self._to_act = False
        limited = self._add_chunks()
        self._keep_up(grid)
        action = proposed = self._planned()
        if self.operator is not None:
            action = self._by_operator(proposed, grid)
        target_rad = self.smoother.state[0]
        if action is None:
            self._brake()
            statistics.held += self._newest_s is not None
            statistics.waiting += self._newest_s is None
        else:
            statistics.acted += 1
            statistics.late_chunks += fresh is None and self._due and not self._operated
            statistics.operated += self._operated
            target_rad, kinds = self._aim(action, grid)
            limited += kinds
        self._count_limited(limited)
        if self.recorder is not None:
            command = Command(target_rad, self._opening_m, self._step_s, self._base.target)
            seen = None if fresh is None else fresh.observation
            step = StepRecord(self._step_s, seen, action, command, tuple(limited), proposed, self._operated)
            self.recorder.record(step)

    def _add_chunks(self) -> list[str]:
        """Add the chunks that have arrived to the plan; returns `non_finite_chunk` if one was refused."""
        if self._operated and self._arrived:  # an earlier plan starts from a position that the robot has left
            self.executor.reset()
        refused = int(self.executor.refused)
        for chunk in self._arrived:
            self.executor.add(
                chunk.actions, chunk.observation.stamp_s, now_s=self._step_s, gripper_logit=chunk.gripper_logit
            )
        self._arrived = []
        return ["non_finite_chunk"] if int(self.executor.refused) > refused else []

    def _planned(self) -> np.ndarray | None:
        """The plan's action (width,) for the current control step; None if nothing is planned for it."""
        try:
            action = np.asarray(self.executor.action(self._step_s))
        except StaleChunkError:
            return None
        return None if bool(self.executor.held) else action

    def _count_limited(self, limited: list[str]) -> None:
        """Count the limits that changed the current step's action, and log when they differ from the last step's."""
        self.statistics.limited.update(limited)
        self.statistics.limited_steps += bool(limited)
        if limited != self._limited:
            self._limited = limited
            into_s = self._step_s - self._began_s
            logger.info("%.2f s: %s", into_s, f"limited by {', '.join(limited)}" if limited else "not limited")

    def _by_operator(self, proposed: np.ndarray | None, grid: FixedGrid) -> np.ndarray | None:
        """The operator's action while they control the robot, otherwise the policy's."""
        assert self.operator is not None
        try:
            qpos = np.asarray(driven(self.robot, "qpos"), np.float64)
            action = self.operator.act(self._step_s, qpos, proposed)
            if action is not None and np.shape(action) != (self.action_spec.width,):
                raise ValueError(f"an action of shape {np.shape(action)}; expected ({self.action_spec.width},)")
        except Exception as error:  # whatever a device may raise
            self._stop(f"operator: {error or type(error).__name__}", grid)
            return None
        if (action is not None) != self._operated:
            self._operated = action is not None
            what = "the operator took over" if self._operated else "the operator handed back"
            logger.info("%.2f s: %s", self._step_s - self._began_s, what)
        return proposed if action is None else np.asarray(action, np.float64)

    def _aim(self, action: np.ndarray, grid: FixedGrid) -> tuple[np.ndarray, list[str]]:
        """Aim for an action's targets within the limits; returns the joint targets [rad] and the limits that changed them."""
        profile, spec, control_dt = self.robot.profile, self.action_spec, self.executor.control_dt
        qpos, commanded = np.asarray(driven(self.robot, "qpos"), np.float64), self.smoother.state[0]
        if wrong := wrong_position(profile, qpos, qpos if self.options.dry_run else commanded):
            self._stop(wrong, grid)
            return commanded, []
        asked = joint_targets(profile, spec, action, qpos, control_dt)
        first = not self._moved and spec.kind == "absolute"
        if first and (wrong := wrong_first_target(profile, asked, qpos, self.options.first_jump_rad)):
            self._stop(wrong, grid)
            return commanded, ["first_jump"]
        self._moved = True
        self._keep_up(grid)
        targets = limit_targets(profile, asked, qpos, self._opening_m, control_dt, commanded)
        self._opening_m = targets.gripper_opening_m
        self._base.target, slowed = base_target(profile, spec, action)
        heading = None if spec.kind == "absolute" else (targets.joint_position_rad - commanded) / control_dt
        self._keep_up(grid)
        deferred = self.smoother.aim(targets.joint_position_rad, heading, partial(self._keep_up, grid))
        if deferred is not None:
            self.statistics.deferred[deferred] += 1
        kinds = [kind for kind, changed in targets.limited.items() if changed]
        return targets.joint_position_rad, [*kinds, *(["base_velocity"] if slowed else [])]

    def _keep_up(self, grid: FixedGrid) -> None:
        """While a step's action is being prepared, send the commands that fall due; they continue the earlier motion.

        Preparing an action for two arms takes 1 to 4 ms; at 500 commands per second, one or two would otherwise be missed
        each time. The first command of the next step is not sent before the action is ready: with one command per step, the
        action would otherwise be executed one step late.
        """
        period_s = grid.period_s
        while (
            self.stopped is None
            and (grid.index + 1) // self._commands_per_step == self._step
            and self.clock.now() >= grid.t_s + period_s - min(period_s, ACT_S) / 2
        ):
            self._send_next(grid)

    def _send_next(self, grid: FixedGrid) -> None:
        """Send the next command at its time; stop the robot if the loop was blocked for longer than the deadline."""
        if blocked_s := self._advance(grid):
            self._stop(f"the control loop itself was blocked for {blocked_s:.2f} s", grid)

    def _stop(self, reason: str, grid: FixedGrid) -> None:
        """Begin a controlled stop; the first of several reasons is kept."""
        logger.warning("stopped: %s", reason)
        if self.stopped is None:
            self._brake()
            self.stopped, self._stop_began_s = reason, grid.t_s
            self.statistics.stops.append(reason)


def _require_fits(robot: Robot, spec: ActionSpec, control_dt: float) -> None:
    """Refuse actions that the robot can't execute, before anything moves."""
    profile, qpos = robot.profile, np.asarray(driven(robot, "qpos"), np.float64)
    if qpos.shape != (profile.joints,):
        raise ValueError(
            f"the robot reports joint positions of shape {qpos.shape}; expected ({profile.joints},), one for each joint of "
            f"its profile {profile.name}"
        )
    base_target(profile, spec, np.zeros(spec.width))
    joint_targets(profile, spec, np.zeros(spec.width), qpos, control_dt)
