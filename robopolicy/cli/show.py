"""`robopolicy report` and `view`: a page that compares runs, and a demo as a video or as a policy sees it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from robopolicy.cli.outputs import check_file
from robopolicy.cli.parsing import POLICY, REQUIRED, of_group, opened, parse, verb_parser
from robopolicy.components import ConfigError

if TYPE_CHECKING:
    from robopolicy.types import Demo

VIDEO_ENDINGS = (".mp4", ".gif")


def report(arguments: Sequence[str]) -> int:
    """Compare runs in one page; returns the exit code."""
    parser = verb_parser(
        "report",
        "Compare runs: losses and every evaluation found in their folders, in one HTML page.",
        ("runs", list[str], REQUIRED, "run folders"),
        ("--out", str, "report.html", "page to write"),
    )
    options = parse(parser, arguments)
    check_file("--out", options.out)
    from robopolicy.report import write_comparison

    print(f"report    {write_comparison([Path(run) for run in options.runs], Path(options.out))}")
    return 0


def view(arguments: Sequence[str]) -> int:
    """Turn a demo or a recorded episode into a video, or into a page of what a policy makes of it; returns the exit code."""
    parser = verb_parser(
        "view",
        "Play a demo: write its images as mp4 or GIF, log it to rerun (extra `view`), or write a page of what a policy sees.",
        ("file", str, REQUIRED, "demo file, or a recorded run"),
        ("--demo", str | None, None, "name of the demo; default: the first"),
        ("--out", str | None, None, "video (.mp4, .gif) or page (.html) to write; default: beside the file"),
        (
            "--policy",
            str | None,
            None,
            "run folder, or an exported one: a page of where it looks and what it predicts, instead of a video",
        ),
        *POLICY,
        ("--rerun", bool, False, "open in the rerun viewer instead"),
    )
    options = parse(parser, arguments)
    from robopolicy.report import demo_images, show_in_rerun, write_video

    demo = _read_demo(Path(options.file), options.demo)
    if options.policy:
        return _view_policy(demo, options)
    if options.backbone or options.group or options.precision != "float32":
        raise ConfigError("--backbone, --group and --precision belong to a policy; give --policy RUN")
    if options.rerun:
        show_in_rerun(demo)
        return 0
    out = Path(options.out) if options.out else Path(options.file).with_suffix(f".{demo.name}.mp4")
    if out.suffix not in VIDEO_ENDINGS:
        raise ConfigError(f"--out {out}: expected a name that ends in {' or '.join(VIDEO_ENDINGS)}")
    check_file("--out", out)
    print(f"video     {write_video(demo_images(demo), out)}")
    return 0


def _view_policy(demo: "Demo", options: Namespace) -> int:
    from robopolicy.report import write_policy_page

    if options.rerun:
        raise ConfigError("--rerun plays the demo alone; leave it out, or --policy")
    out = Path(options.out) if options.out else Path(options.file).with_suffix(f".{demo.name}.html")
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: with --policy a page is written; expected .html at its end")
    check_file("--out", out)
    policy = opened(options, of_group(options.policy, options.group))
    print(f"page      {write_policy_page(policy, demo, out, f'{options.policy} on {options.file}')}")
    return 0


def _read_demo(path: Path, name: str | None) -> "Demo":
    from robopolicy.demos.formats import open_demos

    with open_demos(path) as demos:
        if name is not None and name not in demos.names:
            raise ConfigError(f"{path}: no demo {name!r}; it has {demos.names[0]} .. {demos.names[-1]}")
        return demos.read(name or demos.names[0])
