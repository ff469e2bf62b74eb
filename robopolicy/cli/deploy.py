"""`robopolicy export` and `serve`: a trained policy as a graph, and behind a socket."""

import json
from collections.abc import Sequence
from typing import Literal

from robopolicy.cli.parsing import add_precision, parse, verb_parser


def export(arguments: Sequence[str]) -> int:
    """Export a policy; gives the exit code."""
    parser = verb_parser("export", "A policy as one graph with its state as explicit inputs and outputs.")
    parser.add_argument("policy", type=str, help="run folder")
    parser.add_argument("--format", type=Literal["onnx"], default="onnx", help="kind of graph")
    parser.add_argument("--out", type=str, required=True, help="folder for the graph and its manifest")
    parser.add_argument("--int8", action="store_true", help="int8 weights in matrix products")
    options = parse(parser, arguments)
    from robopolicy.control.export import export_policy
    from robopolicy.experiment import load_policy

    folder = export_policy(load_policy(options.policy), options.out, options.int8)
    error = json.loads((folder / "manifest.json").read_text())["error_to_torch"]
    print(f"differs   {error:.2g} of an action's range from torch, at most")
    print(f"exported  {folder}")
    return 0


def serve(arguments: Sequence[str]) -> int:
    """Serve a policy until SIGTERM or Ctrl-C; gives the exit code."""
    parser = verb_parser("serve", "A policy behind openpi's websocket protocol; also GET /healthz and /metrics.")
    parser.add_argument("policy", type=str, help="run folder, or an exported folder")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address; beyond this machine only with a key")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one")
    parser.add_argument("--api-key-file", type=str | None, default=None, help="file whose first line is the key")
    parser.add_argument("--tls-cert", type=str | None, default=None, help="certificate chain (PEM)")
    parser.add_argument("--tls-key", type=str | None, default=None, help="private key (PEM)")
    parser.add_argument(
        "--mapping", type=str, default="native", help="preset or YAML: the clients' names -> the policy's"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    add_precision(parser)
    options = parse(parser, arguments)
    from robopolicy.control.server import read_api_key
    from robopolicy.control.server import serve as run_server
    from robopolicy.experiment.run_folder import open_policy

    policy = open_policy(options.policy, options.device, None if options.precision == "float32" else options.precision)
    run_server(
        policy,
        policy.spec,
        host=options.host,
        port=options.port,
        api_key=read_api_key(options.api_key_file) if options.api_key_file else None,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        mapping=options.mapping,
        on_ready=lambda host, port: print(f"serving   ws://{host}:{port}", flush=True),
    )
    return 0
