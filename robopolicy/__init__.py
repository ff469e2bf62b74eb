"""robopolicy: from demonstrations to a robot, around a policy head with windowed memory.

The names below are resolved when they are first used, so that importing `robopolicy.client` on a robot needs no torch.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_HOME = {
    "ActionSpec": "robopolicy.types",
    "ArraySpec": "robopolicy.types",
    "Batch": "robopolicy.types",
    "Chunk": "robopolicy.types",
    "Command": "robopolicy.types",
    "Demo": "robopolicy.types",
    "DemoFormatError": "robopolicy.types",
    "Observation": "robopolicy.types",
    "ConfigError": "robopolicy.components",
    "ExperimentConfig": "robopolicy.experiment.config",
    "Policy": "robopolicy.types",
    "PolicySpec": "robopolicy.types",
    "Prediction": "robopolicy.types",
    "read_config": "robopolicy.experiment.reading",
    "register": "robopolicy.components",
    "DemoFile": "robopolicy.demos.hdf5",
    "DemoWriter": "robopolicy.demos.hdf5",
    "PolicyHead": "robopolicy.model.policy_head",
    "action_loss": "robopolicy.model.losses",
    "ChunkPolicy": "robopolicy.model.policy",
    "load_policy": "robopolicy.experiment.opening",
    "save_policy": "robopolicy.experiment.run_folder",
    "read_provenance": "robopolicy.experiment.run_folder",
    "train": "robopolicy.training.train",
    "evaluate": "robopolicy.rollout.evaluate",
    "Runner": "robopolicy.rollout.actor",
}
"""Module of each public name."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"robopolicy has no {name!r}. It has: {', '.join(_HOME)}")
    return getattr(_import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


__all__ = [*_HOME]
