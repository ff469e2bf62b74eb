"""The command line: `robopolicy VERB ...`. Each verb's module only connects the parts of the package."""

import importlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from robopolicy.types import one_line, printable

VERBS = {
    "collect": ("robopolicy.cli.collect", "collect demonstrations of a simulator task with the scripted expert"),
    "check": ("robopolicy.cli.files", "print the contents of demo files and the problems found in them"),
    "convert": ("robopolicy.cli.files", "convert demos to another format, or a RoboVLMs checkpoint to a run folder"),
    "edit": ("robopolicy.cli.files", "merge, split, select, relabel, trim or resample demos into new files"),
    "encode": ("robopolicy.cli.files", "encode the images of a demo file with a frozen vision-language backbone"),
    "train": ("robopolicy.cli.train", "train a policy on demos"),
    "eval": ("robopolicy.cli.evaluate", "measure a policy's success rate in closed loop, with its interval"),
    "dagger": ("robopolicy.cli.dagger", "train a policy on its own states, labeled by an expert, in rounds"),
    "improve": ("robopolicy.cli.improve", "improve a policy by reinforcement learning (recurrent PPO)"),
    "components": (
        "robopolicy.cli.components",
        "list the kinds of encoders, memories, action heads, tasks, robots, ...",
    ),
    "report": ("robopolicy.cli.show", "compare runs on one HTML page"),
    "view": ("robopolicy.cli.show", "play a recorded episode or demo"),
    "export": ("robopolicy.cli.deploy", "export a policy as an ONNX graph with explicit state"),
    "serve": ("robopolicy.cli.deploy", "serve a policy over openpi's websocket protocol"),
    "push": ("robopolicy.cli.deploy", "copy a run folder to a hub, without anything private"),
    "pull": ("robopolicy.cli.deploy", "copy a run folder from a hub, and check it"),
    "profile": ("robopolicy.cli.profile", "write a robot's limits and kinematics from its URDF or MJCF"),
    "run": ("robopolicy.cli.run", "run a policy on a robot, in real time, within its limits"),
}
"""Verb -> (module, line of help); the module's function of the same name runs the verb (of `eval`: `evaluate`)."""

EXTRAS = {
    "sim": ("mujoco", "mujoco_warp", "warp", "av", "PIL", "imageio"),
    "robot": ("msgpack", "websockets", "ruckig", "roslibpy"),
    "serve": ("msgpack", "websockets"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "formats": ("pyarrow", "av", "fsspec"),
    "vlm": ("transformers", "peft", "PIL"),
    "view": ("rerun",),
    "hub": ("huggingface_hub",),
}
"""Extra -> the packages that it installs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 success, 1 problems found or failure, 2 usage error, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"robopolicy {version('robopolicy')}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _refuse(f"unknown verb {verb!r}; expected one of {', '.join(VERBS)}")
    logging.basicConfig(level=logging.INFO, handlers=[_log_handler()])
    logging.getLogger("lightning").setLevel(logging.WARNING)
    before, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        run = getattr(importlib.import_module(VERBS[verb][0]), verb if verb != "eval" else "evaluate")
        code = run(rest if verb == "train" else _with_plugins(rest))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        return 130
    except (ValueError, KeyError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _output_closed():
            return 128 + signal.SIGPIPE  # as a shell reports a program that this signal ended
        if os.environ.get("ROBOPOLICY_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else _name_extra(verb, error)
        return _refuse(f"{verb}: {one_line(message)}")
    finally:
        sys.unraisablehook = before


def _output_closed() -> bool:
    """Whether standard output is a pipe without a reader, as after `robopolicy ... | head`; if so, discard the rest of it."""
    poll = select.poll()
    poll.register(1, 0)
    if closed := any(events & select.POLLERR for _, events in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return closed


def _interrupt_again(lost: Any) -> None:
    """Resend an interrupt that Python dropped because it arrived during a callback, such as that of a weak reference."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        again = (threading.main_thread().ident, signal.SIGINT)
        threading.Timer(0.01, signal.pthread_kill, again).start()  # later, since it would be dropped again here
    else:
        sys.__unraisablehook__(lost)


def _with_plugins(arguments: Sequence[str]) -> list[str]:
    """Import the modules of `--plugins MODULE ...`; returns the other arguments."""
    from robopolicy.components import load_plugins

    rest, modules, reading = [], [], False
    for word in arguments:
        reading = word == "--plugins" or (reading and not word.startswith("-"))
        if not reading:
            rest.append(word)
        elif word != "--plugins":
            modules.append(word)
    load_plugins(modules)
    return rest


def _name_extra(verb: str, error: Exception) -> str:
    """The error's message or, if the package that is missing belongs to an extra, which extra to install."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    extras = [extra for extra, packages in EXTRAS.items() if package in packages]
    if not extras or not isinstance(error, ModuleNotFoundError) or "robopolicy[" in str(error):
        return str(error)
    extra = verb if verb in extras else extras[0]
    return f"needs the package {package}, which is not installed; pip install 'robopolicy[{extra}]'"


def say(text: str) -> None:
    """Print a line with control characters escaped, since names in it may come from an untrusted file or server."""
    print(printable(text), flush=True)


def _refuse(message: str) -> int:
    print(printable(f"robopolicy: {message}"), file=sys.stderr)
    return 2


def _log_handler() -> logging.Handler:
    """A handler for standard output that escapes control characters, since names may come from an untrusted file."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter("%(message)s"))
    return handler


def _help() -> str:
    verbs = "\n".join(f"  {verb:<12}{line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: robopolicy VERB ... | --version | --help\n\n"
        f"{verbs}\n\n"
        "`robopolicy VERB --help` shows a verb's options. Each takes --config FILE.yaml, and --plugins MODULE ... as its\n"
        "last option: modules that register further components (`robopolicy components`).\n"
        "ROBOPOLICY_TRACEBACK=1 shows where an error came from."
    )
