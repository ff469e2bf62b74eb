"""`robopolicy check`, `convert`, `edit` and `encode`: check, convert and edit demo files, and encode images as tokens."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import track

from robopolicy.cli import say
from robopolicy.cli.outputs import check_file, check_folder
from robopolicy.cli.parsing import REQUIRED, at_least, field_options, made_from, parse, verb_parser
from robopolicy.components import ConfigError, require
from robopolicy.demos import check as demo_check
from robopolicy.demos.check_report import print_report
from robopolicy.demos.edit import Edit, edit_demos, read_instructions
from robopolicy.demos.formats import convert as convert_demos
from robopolicy.experiment.robovlms import CheckpointOptions, convert_checkpoint
from robopolicy.model.encoders._backbones import Reading
from robopolicy.report.check_page import write_check_page
from robopolicy.training.encode import EncodeOptions, encode_file
from robopolicy.types import DemoFormatError, printable

CHECKPOINT_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Endings by which `convert` recognizes a RoboVLMs checkpoint."""


def check(arguments: Sequence[str]) -> int:
    """Check demo files; returns 0 without problems, 1 with some, 2 if a file can't be opened."""
    parser = verb_parser(
        "check",
        "Print contents and problems of demo files of any format.",
        ("files", list[str], REQUIRED, "files or folders of demos"),
        ("--html", str | None, None, "page to write: action histograms, contact sheets"),
        ("--salvage", str | None, None, "demo file to write the demos without problems to"),
    )
    options = parse(parser, arguments)
    for option in ("html", "salvage"):
        if options[option] is not None:
            check_file(f"--{option}", options[option])
    return run_check(options.files, html=options.html, salvage_to=options.salvage)


def run_check(
    files: Sequence[str | Path],
    html: str | Path | None = None,
    salvage_to: str | Path | None = None,
    console: Console | None = None,
) -> int:
    """Print the contents and problems of each file; returns the exit code.

    Args:
        files: files or folders of demos of any known format.
        html: page to write, with action histograms and contact sheets.
        salvage_to: native file to write the demos without problems to; needs exactly one source file.
        console: where to print.

    Returns:
        0: no problems; 1: problems were found; 2: a file can't be opened as demos.
    """
    console = console or Console(soft_wrap=True)
    if salvage_to is not None and len(files) != 1:
        raise DemoFormatError(f"--salvage needs exactly one file; {len(files)} were given")
    reports, refused = [], []
    for path in files:
        try:
            reports.append(demo_check.check_file(path, progress=console.is_terminal))
        except DemoFormatError as error:
            refused.append(str(error))
    demo_check.compare_files(reports)
    for report in reports:
        print_report(report, console)
    for line in refused:
        console.print(printable(line), markup=False, highlight=False)
    if salvage_to is not None and reports:
        for note in demo_check.salvage(reports[0], salvage_to):
            console.print(printable(note), markup=False, highlight=False)
        console.print(f"salvaged  {salvage_to}: {len(reports[0].good)} of {len(reports[0].names)} demos", markup=False)
    if html is not None and reports:
        console.print(f"page      {write_check_page(reports, Path(html))}", markup=False)
    if refused:
        return 2
    return 1 if any(report.problems for report in reports) else 0


def convert(arguments: Sequence[str]) -> int:
    """Convert demos to another format, or a RoboVLMs checkpoint to a run folder; returns the exit code."""
    parser = verb_parser(
        "convert",
        "Demos of any format -> another format; a RoboVLMs checkpoint -> a run folder.",
        ("source", str, REQUIRED, "demos, or a checkpoint (.pt, .ckpt, .safetensors)"),
        ("target", str, REQUIRED, "file or folder to write"),
        ("--format", str | None, None, "kind of the target (`components demo_format`); default: robomimic"),
        ("--options", list[str], [], "options of the target's format, NAME=VALUE, such as images=png"),
        (
            "--white",
            list[str],
            [],
            "value of full brightness of images that are not 8-bit, NAME=VALUE, such as front=65535",
        ),
        *field_options(CheckpointOptions, "For RoboVLMs checkpoints. "),
    )
    options = parse(parser, arguments)
    require("://" in options.source or Path(options.source).exists(), f"{options.source}: no such file or folder")
    check_folder("convert", Path(options.target).parent)
    if Path(options.source).suffix in CHECKPOINT_ENDINGS:
        say(f"policy    {convert_checkpoint(options.source, options.target, made_from(CheckpointOptions, options))}")
        return 0
    white = _values("--white", options.white)
    for key, value in white.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**53:
            raise ConfigError(f"--white {key}={value}: expected a number more than 0")
        white[key] = float(value)
    how = _values("--options", options.options)
    for note in convert_demos(options.source, options.target, options.format, options=how, white=white):
        say(f"note      {note}")
    say(f"written   {options.target}")
    return 0


def edit(arguments: Sequence[str]) -> int:
    """Write changed copies of demo files; returns the exit code."""
    parser = verb_parser(
        "edit",
        "Write new demo files from existing ones of any format; no source is changed.",
        ("sources", list[str], REQUIRED, "files or folders of demos; several are merged"),
        ("--out", str | None, None, "file or folder to write, with all demos that are left"),
        (
            "--split",
            list[str],
            [],
            "files to write instead, FILE=PART: a count (20), a share (0.9), rest, or a filter key",
        ),
        ("--select", list[str], [], "demos to keep: demo_3, demo_3..demo_9, or a filter key"),
        ("--drop", list[str], [], "demos to leave out, named as in --select"),
        ("--drop-keys", list[str], [], "observation keys to leave out"),
        ("--rename", list[str], [], "observation keys, OLD=NEW"),
        ("--relabel", str | None, None, "CSV file of new instructions, with the header demo,instruction"),
        ("--trim-idle", int | None, None, "longest pause to keep [steps]; longer ones are shortened to it"),
        ("--rate", float | None, None, "lower control rate to resample to [Hz]"),
        ("--filter-keys", list[str], [], "filter keys to write, NAME=PART as in --split"),
        ("--seed", int, 0, "seed of the random choice of demos for counts and shares"),
        ("--format", str | None, None, "kind of the files to write; default: robomimic"),
        ("--options", list[str], [], "options of the format, NAME=VALUE, such as images=png"),
        ("--dry-run", bool, False, "print what would be written, and write nothing"),
    )
    options = parse(parser, arguments)
    if (options.out is None) == (not options.split):
        raise ConfigError("give either --out FILE or --split FILE=PART ...")
    outputs = {options.out: "all"} if options.out is not None else _words("--split", options.split)
    for path in outputs:
        check_folder("--split" if options.split else "--out", Path(path).parent)
    at_least(options, 0, "seed")
    changes = Edit(
        drop_keys=options.drop_keys,
        rename=_words("--rename", options.rename),
        trim_idle=options.trim_idle,
        rate_hz=options.rate,
        select=options.select,
        drop=options.drop,
        instructions={} if options.relabel is None else read_instructions(options.relabel),
        filter_keys=_words("--filter-keys", options.filter_keys),
        seed=options.seed,
    )
    how = _values("--options", options.options)
    files, notes = edit_demos(
        options.sources, outputs, changes, format=options.format, options=how, dry_run=options.dry_run
    )
    for note in notes:
        say(f"note      {note}")
    for file in files:
        for name, steps in file.steps.items() if options.dry_run else ():
            path, old = file.origin[name]
            say(f"demo      {name}: {steps} steps, {old} of {path.name}")
        text = f"{file.path}: {len(file.steps)} demos, {sum(file.steps.values())} steps; {', '.join(file.keys)}"
        say(f"{'would be' if options.dry_run else 'written '}  {text}")
    return 0


def _words(option: str, words: Sequence[str]) -> dict[str, str]:
    """The words NAME=VALUE as a mapping; a name that is given twice is refused."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, text = word.rpartition("=")
        require(key and equals and text, f"{option}: {word!r} is not NAME=VALUE")
        require(key not in found, f"{option} names {key!r} twice; expected each name once")
        found[key] = text
    return found


def _values(option: str, words: Sequence[str]) -> dict[str, Any]:
    """As `_words`, with values that are valid JSON, such as numbers and booleans, decoded."""
    found: dict[str, Any] = _words(option, words)
    for key, text in found.items():
        with suppress(ValueError):
            found[key] = json.loads(text)
    return found


def encode(arguments: Sequence[str]) -> int:
    """Write a backbone's tokens beside the demos; returns the exit code."""
    options = parse(_encode_parser(), arguments)
    require(
        "://" not in options.file, f"{options.file}: tokens are written beside the file; copy it to this machine first"
    )
    at_least(options, 0, "tiles")
    if options.prompt_tokens is not None:
        at_least(options, 1, "prompt_tokens")
    reading = Reading(options.readout, options.layer, tiles=options.tiles)
    how = EncodeOptions(
        tuple(options.cameras), options.template, options.prompt_tokens, reading, options.dtype, options.device
    )
    bar = (lambda names: track(names, description="encoding", transient=True)) if Console().is_terminal else iter
    done = encode_file(options.file, options.model, how, out=options.out, progress=bar)
    say(f"encoded   {done.demos} demos, {done.frames} frames")
    say(f"tokens    {done.token_count} of width {done.token_width} a frame, float16")
    say(f"written   {done.path}")
    return 0


def _encode_parser() -> ArgumentParser:
    return verb_parser(
        "encode",
        "Run a frozen backbone over all frames of a demo file once.",
        ("file", str, REQUIRED, "demo file in the native layout; it is not changed"),
        ("--encoder", Literal["transformers"], "transformers", "kind of backbone"),
        ("--model", str, REQUIRED, "local folder or hub name of the backbone"),
        ("--cameras", list[str], [], "cameras that it reads, in this order; default: all"),
        (
            "--template",
            str,
            "{instruction}",
            "the prompt; {instruction} stands for a demo's instruction, {images} for the images (by default before it), or "
            "{image_1}, {image_2}, ... for each camera's",
        ),
        (
            "--prompt-tokens",
            int | None,
            None,
            "tokens of every prompt, must be equal in files trained on together; default: as this file's instructions need",
        ),
        (
            "--readout",
            Literal["all", "last", "mean", "action_token"],
            "all",
            "all: every token of images and prompt; last: the last one; mean: their mean; action_token: the states of learned "
            "vectors from the backbone's folder that are inserted into the prompt",
        ),
        ("--layer", int, -1, "layer of the hidden states; -1: the last"),
        (
            "--tiles",
            int,
            0,
            "n: also encode the n x n tiles of each camera's image, so that small objects get more pixels; 0: none",
        ),
        (
            "--dtype",
            Literal["auto", "float32", "bfloat16", "float16"],
            "auto",
            "type of the backbone's weights; auto: as they are stored",
        ),
        ("--device", str | None, None, "cpu or cuda; default: the GPU if there is one"),
        ("--out", str | None, None, "new demo file with the tokens; default: X.tokens.hdf5 beside X.hdf5"),
    )
