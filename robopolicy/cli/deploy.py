"""`robopolicy export`, `serve`, `push` and `pull`: a policy as an ONNX graph, behind a websocket, or on a hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from robopolicy.cli import say
from robopolicy.cli.outputs import write_json
from robopolicy.cli.parsing import FLOW_STEPS, GROUP, POLICY, REQUIRED, of_group, opened, parse, verb_parser
from robopolicy.components import require
from robopolicy.control.export import export_policy
from robopolicy.control.profile import PROFILES, read_profile
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.experiment import load_policy, sharing
from robopolicy.experiment.opening import save_token_encoder
from robopolicy.files import read_json
from robopolicy.rollout.training_seeds import config_values

MEASURED_FRAMES = 512
"""Number of recorded frames on which the error of an int8 export is measured."""


def export(arguments: Sequence[str]) -> int:
    """Export a policy; returns the exit code."""
    parser = verb_parser(
        "export",
        "Export a policy as one graph with its state as explicit inputs and outputs.",
        ("policy", str, REQUIRED, "run folder"),
        GROUP,
        ("--format", Literal["onnx"], "onnx", "kind of graph"),
        ("--out", str, REQUIRED, "folder for the graph and its manifest"),
        ("--int8", bool, False, "int8 weights in matrix products"),
        (
            "--int8-tolerance",
            float,
            0.02,
            "largest difference of an int8 export from torch, as a share of each action column's range",
        ),
        ("--frames", str | None, None, "demo file to measure int8 on; default: one that the policy was trained on"),
        FLOW_STEPS,
    )
    options = parse(parser, arguments)
    options.policy = of_group(options.policy, options.group)

    frames = _recorded_frames(options.policy, options.frames) if options.int8 else []
    if options.int8 and not frames:
        say("int8      no recorded frames: measured on random observations; give a demo file with --frames")
    policy = load_policy(options.policy, flow_steps=options.flow_steps)
    folder = export_policy(policy, options.out, options.int8, options.int8_tolerance, frames)
    manifest = read_json(folder / "manifest.json")
    say(f"error     at most {manifest['error_to_torch']:.2g} of an action's range, compared with torch")
    if options.int8:
        say(f"float     {len(manifest['float_layers'])} layers that are too sensitive for int8")
    if tokens := save_token_encoder(policy, options.policy, folder):
        say(f"tokens    the graph reads tokens; {tokens.name} records the backbone that makes them")
    say(f"runtime   {_copy_runtime(folder)}: all that a robot computer needs besides numpy and onnxruntime")
    say(f"exported  {folder}")
    return 0


RUNTIME = (
    *("__init__.py", "action_spec.py", "arrays.py", "client.py", "components.py", "options.py", "types.py"),
    *(
        "model/__init__.py",
        "model/rotation_math.py",
        "control/*.py",
        "control/execution/*.py",
        "control/operators/*.py",
    ),
    *("control/robots/*.py", "control/serving/__init__.py", "control/serving/access.py"),
)
"""Files of the package that run an exported policy on a robot; importing them needs only NumPy."""
NEEDS_TORCH = ("export.py", "quantization.py", "server.py")
"""Files of `control/` that are not copied, since they need torch."""


def _copy_runtime(folder: Path) -> Path:
    """Copy the `RUNTIME` files into `folder`/runtime/robopolicy, and the robot profiles as JSON; returns `folder`/runtime."""
    package, copy = Path(__file__).parents[1], folder / "runtime" / "robopolicy"
    for path in (path for name in RUNTIME for path in package.glob(name) if path.name not in NEEDS_TORCH):
        target = copy / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    profiles = copy / PROFILES.relative_to(package)
    profiles.mkdir(exist_ok=True)
    for path in PROFILES.glob("*.yaml"):
        write_json(profiles / f"{path.stem}.json", read_profile(path).to_dict())
    return folder / "runtime"


def serve(arguments: Sequence[str]) -> int:
    """Serve a policy until SIGTERM or Ctrl-C; returns the exit code."""
    parser = verb_parser(
        "serve",
        "Serve a policy over openpi's websocket protocol; also GET /healthz and /metrics.",
        ("policy", str, REQUIRED, "run folder, or an exported folder"),
        ("--host", str, "127.0.0.1", "address to listen on; one that other machines can reach requires --api-key-file"),
        ("--port", int, 8000, "port; 0 takes a free one"),
        ("--api-key-file", str | None, None, "file whose first line is the key"),
        ("--tls-cert", str | None, None, "certificate chain (PEM)"),
        ("--tls-key", str | None, None, "private key (PEM)"),
        ("--mapping", str, "native", "preset or YAML file that maps the clients' key names to the policy's"),
        ("--device", str, "cpu", "cpu or cuda"),
        *POLICY,
    )
    options = parse(parser, arguments)
    from robopolicy.control.server import serve as run_server
    from robopolicy.control.serving.access import read_api_key, tls_context

    run_server(
        opened(options, of_group(options.policy, options.group), options.device),
        host=options.host,
        port=options.port,
        api_key=read_api_key(options.api_key_file) if options.api_key_file else None,
        tls=tls_context(options.tls_cert, options.tls_key),
        mapping=options.mapping,
        on_ready=lambda host, port: say(f"serving   {'wss' if options.tls_cert else 'ws'}://{host}:{port}"),
    )
    return 0


def _recorded_frames(run: str, given: str | None) -> list[dict[str, Any]]:
    """Up to `MEASURED_FRAMES` observations of a demo file: the given one, or the first training file that still exists."""
    trained = config_values(run).get("data.files") or ()
    file = given or next((name for name in trained if Path(name).is_file()), None)
    frames: list[dict[str, Any]] = []
    if file is None:
        return frames
    with DemoFile(file) as demos:
        for demo in demos:
            tokens = {} if demo.tokens is None else {"tokens": demo.tokens}
            for step in range(len(demo)):
                frame = {key: rows[step] for key, rows in {**demo.obs, **tokens}.items()}
                frames.append(frame | {"instruction": demo.instruction})
            if len(frames) >= MEASURED_FRAMES:
                break
    return frames[:MEASURED_FRAMES]


def push(arguments: Sequence[str]) -> int:
    """Copy a folder to a hub; returns the exit code."""
    parser = verb_parser(
        "push",
        "Copy a run folder or an exported one to a hub, without logs, code, pickles, local paths and private URLs.",
        ("policy", str, REQUIRED, "run folder, or an exported folder"),
        ("url", str, REQUIRED, "hf://owner/name, or a URL that fsspec supports: s3://bucket/runs/lift"),
        ("--public", bool, False, "if this push creates the repository on hf://, make it public"),
    )
    options = parse(parser, arguments)
    pushed = sharing.push(options.policy, options.url, options.public)
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
        "Copy a pushed folder from a hub; its content is treated as untrusted, and kept only if it passes all checks.",
        ("url", str, REQUIRED, "as for push; hf://owner/name@revision for a branch, tag or commit"),
        ("folder", str, REQUIRED, "new folder"),
        (
            "--limit-gb",
            float,
            sharing.LIMIT_GB,
            "largest size of all files together [GB]; a larger folder is not copied",
        ),
    )
    options = parse(parser, arguments)
    require(options.limit_gb > 0, f"--limit-gb is {options.limit_gb}; expected more than 0")
    pulled = sharing.pull(options.url, options.folder, options.limit_gb)
    if pulled.left_out:
        say(f"left out  {', '.join(pulled.left_out)}")
    say(f"pulled    {len(pulled.files)} files, {sum(pulled.files.values()) / 1e6:.3g} MB, to {pulled.place}")
    return 0
