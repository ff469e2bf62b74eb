"""An experiment: its config tree, the policy that it builds, and the run folder that keeps both."""

from robopolicy.components import ConfigError
from robopolicy.experiment.building import DemoFacts, build_policy
from robopolicy.experiment.config import (
    DataConfig,
    ExperimentConfig,
    NormalizationConfig,
    OptimizerConfig,
    TrainingConfig,
)
from robopolicy.experiment.opening import load_policy, open_policy
from robopolicy.experiment.reading import config_from_dict, config_to_dict, read_config
from robopolicy.experiment.run_folder import CheckpointError, read_policy, read_provenance, save_policy

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataConfig",
    "DemoFacts",
    "ExperimentConfig",
    "NormalizationConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "build_policy",
    "config_from_dict",
    "config_to_dict",
    "load_policy",
    "open_policy",
    "read_config",
    "read_policy",
    "read_provenance",
    "save_policy",
]
