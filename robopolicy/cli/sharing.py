"""`robopolicy push` and `pull`: run folders and exported ones to and from a hub."""

from collections.abc import Sequence

from robopolicy.cli import say
from robopolicy.cli.parsing import REQUIRED, parse, verb_parser
from robopolicy.components import ConfigError
from robopolicy.experiment.sharing import LIMIT_GB
from robopolicy.experiment.sharing import pull as fetch
from robopolicy.experiment.sharing import push as send


def push(arguments: Sequence[str]) -> int:
    """Copy a folder to a hub; returns the exit code."""
    parser = verb_parser(
        "push",
        "Copy a run folder or an exported one to a hub, without what is private.",
        ("policy", str, REQUIRED, "run folder, or an exported folder"),
        ("url", str, REQUIRED, "hf://owner/name, or a URL that fsspec supports: s3://bucket/runs/lift"),
        ("--public", bool, False, "on hf://, everyone may see a repository made by this push"),
    )
    options = parse(parser, arguments)
    pushed = send(options.policy, options.url, options.public)
    for name in pushed.changed:
        say(f"scrubbed  {name}: paths and private URLs were cut to their last part")
    if pushed.left_out:
        say(f"left out  {', '.join(pushed.left_out)}")
    say(f"pushed    {len(pushed.files)} files, {sum(pushed.files.values()) / 1e6:.3g} MB, to {pushed.place}")
    return 0


def pull(arguments: Sequence[str]) -> int:
    """Copy a folder from a hub; returns the exit code."""
    parser = verb_parser(
        "pull",
        "Copy a pushed folder from a hub; it is checked as untrusted, and kept only if it is valid.",
        ("url", str, REQUIRED, "as for push; hf://owner/name@revision for a branch, tag or commit"),
        ("folder", str, REQUIRED, "new folder"),
        ("--limit-gb", float, LIMIT_GB, "largest size of all files together [GB]; a larger folder is not copied"),
    )
    options = parse(parser, arguments)
    if not options.limit_gb > 0:
        raise ConfigError(f"--limit-gb is {options.limit_gb}; expected more than 0")
    pulled = fetch(options.url, options.folder, options.limit_gb)
    if pulled.left_out:
        say(f"left out  {', '.join(pulled.left_out)}")
    say(f"pulled    {len(pulled.files)} files, {sum(pulled.files.values()) / 1e6:.3g} MB, to {pulled.place}")
    return 0
