"""Settings of the process during training: signal handlers, logging, warning filters."""

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LIGHTNING_ADVICE = (
    "You passed in a `val_dataloader` but have no `validation_step`",  # RunKeeper validates
    r"Found \d+ module\(s\) in eval mode",  # a frozen backbone
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)
"""Beginnings of the warnings to ignore, about deliberate choices or other packages' code (regular expressions)."""


class TrainingInterrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C, SIGTERM or SIGHUP; the message says how to continue."""


@dataclass
class Stop:
    """A request to end the training after the current step."""

    requested: bool = False
    """Set by a signal."""
    training: bool = False
    """Whether training steps are running; before that, a signal ends the process at once."""


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """The first Ctrl-C, SIGTERM or SIGHUP ends training after the current step, with a resume file; a second, at once."""
    stop = Stop()

    def request(*_: Any) -> None:
        if stop.requested or not stop.training:
            raise KeyboardInterrupt("interrupted" if stop.training else "stopped before the first step; run it again")
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def visible_log() -> Iterator[None]:
    """Print this package's log from level INFO on, if no logging is configured, as in a notebook or a script."""
    logger = logging.getLogger("robopolicy")
    if logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's promotional messages, and its warnings about deliberate choices."""
    before = {logger: logger.level for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))}
    for logger in before:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in LIGHTNING_ADVICE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
