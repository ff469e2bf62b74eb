"""What `robopolicy run` tells: the figures live in a table, and what came of it at the end."""

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.live import Live

from robopolicy.control.loop import ControlLoop
from robopolicy.control.replay import TOLERANCE_RAD, RecordedStream
from robopolicy.control.robot import Robot
from robopolicy.control.statistics import LoopStatistics, live_table


@contextmanager
def shown(statistics: LoopStatistics, title: str) -> Iterator[None]:
    """The figures in a table that lives as long as the block; on a terminal only."""
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


def summarize(options: Namespace, loop: ControlLoop, robot: Robot, record: RecordedStream | None) -> bool:
    """Print and write the figures; gives False where a replay strayed from its record."""
    statistics = loop.statistics
    figures = statistics.to_dict()
    late, latency = figures["deviation_ms"], figures["latency_ms"]
    limited = sum(statistics.limited.values())
    print(
        f"steps     {statistics.steps} at {statistics.rate_hz:.2f} Hz, p99 {late.get('p99', 0.0):.2f} ms behind the grid, "
        f"{statistics.overruns} of {statistics.commands} commands overrun"
    )
    if latency and record is None:
        print(
            f"policy    p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms; {statistics.missed_frames} frames missed"
        )
    print(f"limited   {limited} interventions in {statistics.steps} steps: {dict(statistics.limited)}")
    followed = True
    if record is not None:
        figures["replay"] = outcome = record.outcome()
        followed = outcome["followed"]
        print(
            f"replayed  {_told(outcome, robot.profile.joint_names, options.speed * record.record.speed_within(robot.profile))}"
        )
    success: bool | None = getattr(robot, "success", None)
    if success is not None:
        print(f"success   {'yes' if success else 'no'}")
        figures["success"] = success
    if loop.stopped:
        print(f"stopped   {loop.stopped}")
    if options.json:
        out = Path(options.json)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2))
    if options.record or options.json:
        print(f"result    {options.record or options.json}")
    return followed


def _told(outcome: Mapping[str, Any], joint_names: Sequence[str], slow_enough: float) -> str:
    """The outcome of a replay in one line; `slow_enough` is the speed at which the robot's limits would not be met."""
    line = f"{outcome['done']} of {outcome['steps']} steps"
    if "largest_rad" not in outcome:
        return f"{line}; how near to the record can't be told without its joint positions"
    line += (
        f", at most {outcome['largest_rad']:.3f} rad from the record ({joint_names[outcome['joint']]} at "
        f"{outcome['at_s']:.2f} s), {outcome['end_rad']:.3f} rad at the end"
    )
    if outcome["largest_rad"] > TOLERANCE_RAD:
        line += f"; more than {TOLERANCE_RAD:g} rad, the robot's limits want --speed {math.floor(100 * slow_enough) / 100:g}"
    return line
