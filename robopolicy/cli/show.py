"""The commands `robopolicy report` (a page that compares runs) and `robopolicy view` (a video or page of one demo)."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from robopolicy.cli import say
from robopolicy.cli.outputs import check_file
from robopolicy.cli.parsing import POLICY, REQUIRED, of_group, opened, parse, verb_parser
from robopolicy.components import ConfigError, require
from robopolicy.demos.formats import open_demos
from robopolicy.report.comparison import write_comparison
from robopolicy.report.policy_page import write_policy_page
from robopolicy.report.video import demo_images, show_in_rerun, write_video
from robopolicy.types import Demo

VIDEO_ENDINGS = (".mp4", ".gif")
RATE_HZ = 20.0
"""Control rate assumed for demos whose file does not state one [Hz]."""


def report(arguments: Sequence[str]) -> int:
    """Write one HTML page that compares runs; returns the exit code."""
    parser = verb_parser(
        "report",
        "Compare runs: losses and every evaluation found in their folders, in one HTML page.",
        ("runs", list[str], REQUIRED, "run folders"),
        ("--out", str, "report.html", "page to write"),
    )
    options = parse(parser, arguments)
    check_file("--out", options.out)
    say(f"report    {write_comparison([Path(run) for run in options.runs], Path(options.out))}")
    return 0


def view(arguments: Sequence[str]) -> int:
    """Show a demo as a video, in the rerun viewer, or as a page with a policy's predictions on it; returns the exit code."""
    parser = verb_parser(
        "view",
        "Show a demo: write its images as mp4 or GIF, open it in rerun (extra `view`), or write a policy's output.",
        ("file", str, REQUIRED, "demo file, or a recorded run"),
        ("--demo", str | None, None, "name of the demo; default: the first"),
        ("--out", str | None, None, "video (.mp4, .gif) or page (.html) to write; default: beside the file"),
        (
            "--policy",
            str | None,
            None,
            "run folder or exported policy: write a page of the image regions it uses and its predictions, not a video",
        ),
        *POLICY,
        ("--rerun", bool, False, "open in the rerun viewer instead"),
    )
    options = parse(parser, arguments)
    with open_demos(Path(options.file)) as demos:
        demo = demos.read(options.demo or demos.names[0])
        rate_hz = demos.action_spec.rate_hz if demos.action_spec else demos.action_facts.get("rate_hz")
    if options.policy:
        return _view_policy(demo, options)
    if options.backbone or options.group or options.precision != "float32" or options.flow_steps:
        raise ConfigError("--backbone, --group, --precision and --flow-steps belong to a policy; give --policy RUN")
    if options.rerun:
        show_in_rerun(demo, 1 / (rate_hz or RATE_HZ))
        return 0
    out = Path(options.out) if options.out else Path(options.file).with_suffix(f".{demo.name}.mp4")
    require(out.suffix in VIDEO_ENDINGS, f"--out {out}: expected a name that ends in {' or '.join(VIDEO_ENDINGS)}")
    check_file("--out", out)
    say(f"video     {write_video(demo_images(demo), out, rate_hz or RATE_HZ)}")
    return 0


def _view_policy(demo: Demo, options: Namespace) -> int:
    """Write the HTML page of a policy's predictions on a demo; returns the exit code."""
    require(not options.rerun, "--rerun shows the demo without a policy; drop --rerun or --policy")
    out = Path(options.out) if options.out else Path(options.file).with_suffix(f".{demo.name}.html")
    require(out.suffix == ".html", f"--out {out}: with --policy a page is written; expected .html at its end")
    check_file("--out", out)
    policy = opened(options, of_group(options.policy, options.group))
    say(f"page      {write_policy_page(policy, demo, out, f'{options.policy} on {options.file}')}")
    return 0
