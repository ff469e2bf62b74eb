"""Output of `robopolicy run`: a live table of statistics, and a summary at the end."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.live import Live
from rich.table import Table

from robopolicy.cli import say
from robopolicy.cli.outputs import write_json
from robopolicy.control.loop import ControlLoop
from robopolicy.control.replay import TOLERANCE_RAD, RecordedStream
from robopolicy.control.robot import Robot
from robopolicy.control.statistics import MISSED_SHARE, LoopStatistics


@contextmanager
def shown(statistics: LoopStatistics, title: str) -> Iterator[None]:
    """Show the statistics in a live table within the context; on a terminal only."""
    console = Console()
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    with Live(live_table(statistics, title), console=console, auto_refresh=False) as live:

        def refresh() -> None:
            while not done.wait(0.5):
                live.update(live_table(statistics, title), refresh=True)

        shower = threading.Thread(target=refresh, daemon=True)
        shower.start()
        try:
            yield
        finally:
            done.set()
            shower.join()
            live.update(live_table(statistics, title), refresh=True)


def summarize(
    options: Namespace, loop: ControlLoop, robot: Robot, replayed: RecordedStream | None, unrecorded: bool
) -> bool:
    """Print the statistics and write them as JSON; returns False if the run failed in any way.

    Args:
        options: options of the command line.
        loop: the control loop, after its run.
        robot: the robot that the loop controlled.
        replayed: the demo that was replayed, if any.
        unrecorded: whether a recording was requested and is missing.
    """
    figures = loop.statistics.to_dict()
    _print_steps(options, loop, figures, replay=replayed is not None)
    failures = [loop.statistics.failure] if loop.statistics.failure else []
    if replayed is not None:
        figures["replay"] = outcome = replayed.outcome()
        if options.dry_run:  # the robot does not move, so it can't follow a demo
            say("dry run   no command was sent; the limited steps above are counted for a robot that does not move")
        else:
            speed = options.speed * replayed.record.speed_within(robot.profile)
            say(f"replayed  {_outcome_text(outcome, robot.profile.joint_names, speed)}")
            if not outcome["followed"]:
                failures.append("the robot did not follow the recorded demo to its end")
    success: bool | None = getattr(robot, "success", None)
    if success is not None:
        say(f"success   {'yes' if success else 'no'}")
        figures["success"] = success
    if loop.stopped:
        say(f"stopped   {loop.stopped}")
    if unrecorded:
        failures.append(f"nothing was recorded in {options.record}")
    figures["failures"] = failures
    for failure in failures:
        say(f"failed    {failure}")
    if options.json:
        write_json(Path(options.json), figures)
    if result := options.record if options.record and not unrecorded else options.json:
        say(f"result    {result}")
    return loop.stopped is None and not failures


def _print_steps(options: Namespace, loop: ControlLoop, figures: Mapping[str, Any], replay: bool) -> None:
    """Print the rate, the latency and missed frames, the operator's steps, and the limited steps, one line each."""
    statistics, late, latency = loop.statistics, figures["delay_ms"], figures["latency_ms"]
    say(
        f"steps     {statistics.steps} at {statistics.rate_hz:.2f} Hz, p99 {late.get('p99', 0.0):.2f} ms late, "
        f"{statistics.commands} commands sent, {statistics.overruns} command ticks missed"
    )
    if latency and not replay:
        missed = f"{statistics.missed_frames} frames missed"
        say(f"policy    p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms; {missed}")
        needed = math.ceil(latency["p50"] / (1e3 * loop.executor.control_dt))
        if statistics.missed_frames > MISSED_SHARE * statistics.steps and needed > options.actions_per_call:
            say(
                f"memory    missed {statistics.missed_frames} of {statistics.steps} frames, since a prediction takes {needed} "
                f"control steps; train with --data.frame_stride {needed}, and run with --actions-per-call {needed}"
            )
    if options.intervene:
        say(f"operator  {statistics.operated} of {statistics.steps} steps")
    say(
        f"limited   {statistics.limited_steps} of {statistics.steps} steps "
        f"({100 * statistics.limited_steps / max(statistics.steps, 1):.1f} %): {dict(statistics.limited)}"
    )


def _outcome_text(outcome: Mapping[str, Any], joint_names: Sequence[str], slow_enough: float) -> str:
    """The outcome of a replay in one line; `slow_enough` is the largest --speed within the robot's limits."""
    line = f"{outcome['done']} of {outcome['steps']} steps"
    if "largest_rad" not in outcome:
        return f"{line}; the robot's distance from the demo is unknown, since the demo has no joint positions"
    line += (
        f", at most {outcome['largest_rad']:.3f} rad from the demo ({joint_names[outcome['joint']]} at "
        f"{outcome['at_s']:.2f} s), {outcome['end_rad']:.3f} rad at the end"
    )
    if outcome["largest_rad"] > TOLERANCE_RAD:
        slower = math.floor(100 * slow_enough) / 100
        line += (
            f"; more than {TOLERANCE_RAD:g} rad: the motion is too fast for the robot's limits; give --speed {slower:g}"
        )
    return line


LIVE_STEPS = 400
"""Control steps summarized by the live table; summarizing all of them would delay the commands."""


def live_table(statistics: LoopStatistics, title: str = "robopolicy run") -> Table:
    """The current figures as a rich table."""
    figures = statistics.to_dict(LIVE_STEPS)
    table = Table(title=title, title_justify="left")
    for column in ("", "p50", "p99", "worst"):
        table.add_column(column, justify="right" if column else "left")
    for name, label in (
        ("delay_ms", "delay of a step [ms]"),
        ("command_delay_ms", "delay of a command [ms]"),
        ("latency_ms", "latency of the policy [ms]"),
        ("slack_ms", "slack of a step [ms]"),
    ):
        times = figures[name]
        worst = times.get("min" if name == "slack_ms" else "max")
        shown = (times.get("p50"), times.get("p99") if name != "slack_ms" else None, worst)
        table.add_row(label, *("" if value is None else f"{value:.2f}" for value in shown))
    table.add_section()
    nominal_hz = 1 / statistics.control_dt
    table.add_row("rate", f"{statistics.rate_hz:.2f} of {nominal_hz:g} Hz", f"{figures['commands']} commands", "")
    table.add_row("overruns", f"{figures['overruns']} command ticks", f"{figures['missed_steps']} steps missed", "")
    table.add_row("policy", f"{figures['missed_frames']} frames missed", f"{figures['late_chunks']} late", "")
    table.add_row("held", f"{figures['held']} steps", "", "")
    for name in ("limited", "deferred"):
        for kind, count in sorted(figures[name].items()):
            table.add_row(f"{name}: {kind}", f"{count}", f"{100 * count / max(statistics.steps, 1):.1f} %", "")
    for reason in figures["stops"]:
        table.add_row("stopped", reason, "", "")
    return table
