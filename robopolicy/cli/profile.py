"""`robopolicy profile`: writes a robot's profile, with limits and kinematics, from its URDF or MJCF."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import yaml

from robopolicy.cli import say
from robopolicy.cli.outputs import check_file
from robopolicy.cli.parsing import REQUIRED, parse, verb_parser
from robopolicy.components import require
from robopolicy.control.profile import RobotProfile, profile_from_dict


def profile(arguments: Sequence[str]) -> int:
    """Write the profile; values missing from the description get conservative defaults, which are marked and printed."""
    from robopolicy.sim.description import capsules_of, profile_values

    parser = verb_parser(
        "profile",
        "Make a robot's profile (limits and kinematics) from its URDF or MJCF.",
        ("description", str, REQUIRED, "URDF or MJCF file of the arm"),
        ("--out", str, REQUIRED, "YAML file to write"),
        ("--tool", str | None, None, "link or site of the tool; default: the end of the longest chain"),
        ("--base", str | None, None, "link the arm stands on; default: the root"),
        ("--opening-m", float, 0.0, "distance between the fingers of the open gripper [m]; 0: none"),
    )
    options = parse(parser, arguments)
    check_file("--out", options.out)
    require(not Path(options.out).exists(), f"--out {options.out} exists; choose another file")
    values = profile_values(Path(options.description), options.tool, options.base)
    values["opening_m"] = options.opening_m
    made = profile_from_dict(values, options.description)
    made = replace(made, capsules=capsules_of(Path(options.description), made, options.base))
    values["capsules"] = [asdict(capsule) for capsule in made.capsules]
    values["collision_ignored"] = overlaps = _overlapping(made)
    header = f"# Made by `robopolicy profile` from {Path(options.description).name}.\n"
    Path(options.out).write_text(header + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120))
    say(f"joints    {', '.join(made.joint_names)}")
    say(f"assumed   {', '.join(made.assumed)}: not in the description; replace them by the maker's values")
    use = "set collision_margin_m to keep links apart" if made.capsules else "no collision shapes found to keep apart"
    say(f"links     {len(made.capsules)} capsules; {use}")
    if overlaps:
        say(f"ignored   links {', '.join(f'{one} and {other}' for one, other in overlaps)}: they overlap at home")
    say(f"profile   {options.out}")
    return 0


def _overlapping(made: RobotProfile) -> list[list[int]]:
    """Pairs of links whose capsules overlap at home."""
    distances = made.link_distances
    if distances is None:
        return []
    apart = distances(np.asarray(made.home_rad))
    pairs = {
        tuple(sorted(distances.owners[place][1] for place in pair))
        for pair, gap in zip(distances.pairs, apart, strict=True)
        if gap <= 0
    }
    return [list(pair) for pair in sorted(pairs)]
