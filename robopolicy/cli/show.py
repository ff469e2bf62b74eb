"""`robopolicy report` and `view`: a page that compares runs, and a demo as a video."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robopolicy.cli.outputs import check_file
from robopolicy.cli.parsing import parse, verb_parser
from robopolicy.components import ConfigError

if TYPE_CHECKING:
    from robopolicy.types import Demo

VIDEO_ENDINGS = (".mp4", ".gif")


def report(arguments: Sequence[str]) -> int:
    """Compare runs in one page; returns the exit code."""
    parser = verb_parser(
        "report", "Compare runs: losses and every evaluation found in their folders, in one HTML page."
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument("--out", type=str, default="report.html", help="page to write")
    options = parse(parser, arguments)
    check_file("--out", options.out)
    from robopolicy.report import write_comparison

    print(f"report    {write_comparison([Path(run) for run in options.runs], Path(options.out))}")
    return 0


def view(arguments: Sequence[str]) -> int:
    """Turn a demo or a recorded episode into a video; returns the exit code."""
    parser = verb_parser("view", "Play a demo: write its images as mp4 or GIF, or log it to rerun (extra `view`).")
    parser.add_argument("file", type=str, help="demo file, or a recorded run")
    parser.add_argument("--demo", type=str | None, default=None, help="name of the demo; default: the first")
    parser.add_argument(
        "--out", type=str | None, default=None, help="video to write, .mp4 or .gif; default: beside the file"
    )
    parser.add_argument("--rerun", action="store_true", help="open in the rerun viewer instead")
    options = parse(parser, arguments)
    from robopolicy.report import demo_images, show_in_rerun, write_video

    demo = _read_demo(Path(options.file), options.demo)
    if options.rerun:
        show_in_rerun(demo)
        return 0
    out = Path(options.out) if options.out else Path(options.file).with_suffix(f".{demo.name}.mp4")
    if out.suffix not in VIDEO_ENDINGS:
        raise ConfigError(f"--out {out}: expected a name that ends in {' or '.join(VIDEO_ENDINGS)}")
    check_file("--out", out)
    print(f"video     {write_video(demo_images(demo), out)}")
    return 0


def _read_demo(path: Path, name: str | None) -> "Demo":
    from robopolicy.demos.formats import open_demos

    with open_demos(path) as demos:
        if name is not None and name not in demos.names:
            raise ConfigError(f"{path}: no demo {name!r}; it has {demos.names[0]} .. {demos.names[-1]}")
        return demos.read(name or demos.names[0])
