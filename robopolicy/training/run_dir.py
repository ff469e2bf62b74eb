"""The run folder during training: checks for an existing run, the lock, the resume file."""

import fcntl
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from robopolicy.components import ConfigError, require
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.experiment.reading import config_from_dict, config_to_dict, flat
from robopolicy.experiment.run_folder import CONFIG, DESCRIPTION
from robopolicy.files import remove_unfinished, require_regular
from robopolicy.options import read_yaml

RESUME_FILE = "resume.ckpt"
METRICS_FILE = "metrics.json"
LOCK_FILE = "train.lock"
"""Locked while a process trains in the run folder; the file stays there, which shows that a training run began."""

FREE_TO_CHANGE = (
    "task",
    "execution.",
    "data.placement",
    "data.num_workers",
    *(f"training.{name}" for name in ("max_", "valid_every", "checkpoint_every", "eval_", "select")),
)
"""Options that may differ when a run is resumed; any other change is refused."""


def is_resumed(run_dir: Path, resume: bool) -> bool:
    """Whether the run in a folder is continued; False if a new run begins there.

    A run that was killed before it wrote a resume file starts again from scratch, with or without `resume`.

    Raises:
        ConfigError: the folder holds a run and `resume` is False, or it holds none and `resume` is True.
    """
    taken = [name for name in (RESUME_FILE, DESCRIPTION, METRICS_FILE) if (run_dir / name).exists()]
    if (run_dir / LOCK_FILE).exists() and RESUME_FILE not in taken:
        return False
    if taken and not resume:
        raise ConfigError(
            f"{run_dir} holds a run already ({taken[0]}); continue it with --resume, or give another --run-dir"
        )
    require(
        not resume or RESUME_FILE in taken,
        f"{run_dir} holds no {RESUME_FILE}: nothing to resume; start without --resume",
    )
    return resume


def require_same_options(config: ExperimentConfig, run_dir: Path) -> None:
    """Refuse to resume a run if an option has changed, except for those in `FREE_TO_CHANGE`.

    Raises:
        ConfigError: an option differs; the message names it.
    """
    path = run_dir / CONFIG
    before = flat(config_to_dict(config_from_dict(read_yaml(path), source=str(path))))
    for key, now in flat(config_to_dict(config)).items():
        require(
            before.get(key) == now or key.startswith(FREE_TO_CHANGE),
            f"--{key} is {now} but the run in {run_dir} began with {before.get(key)}; resume it with the same value",
        )


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock the run folder, created if missing, for this training run; only its first process takes the lock.

    Temporary files that a killed training left are removed.

    Raises:
        ConfigError: another training run is writing into the folder.
        OSError: the path of the lock file is a link, or otherwise not a regular file.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if rank_zero_only.rank != 0:
        yield
        return
    require_regular(run_dir / LOCK_FILE)
    lock = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{run_dir}: another training run is writing into it; wait for it, or give another --run-dir"
            ) from None
        remove_unfinished(run_dir)
        yield
    finally:
        os.close(lock)


def read_resume(path: Path, fields: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a resume file, without unpickling.

    Args:
        path: the file.
        fields: its required fields.
        device: device for its tensors.

    Raises:
        ConfigError: it is damaged, needs unpickling, or is not a resume file.
    """
    require_regular(path)
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:200]
        raise ConfigError(
            f"{path} can't be read as a resume file ({reason}); remove it to start this run again"
        ) from None
    if missing := [name for name in fields if not isinstance(found, dict) or name not in found]:
        raise ConfigError(f"{path} is not a resume file: it has no {missing[0]!r}; remove it to start this run again")
    return found
