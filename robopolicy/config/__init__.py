"""What an experiment is, as frozen dataclasses, and how a YAML file and the command line become one.

Modules take plain arguments; only `policy.py`, `train.py` and `cli` see these objects.
"""

from robopolicy.config.checks import ConfigError
from robopolicy.config.experiment import (
    AugmentationConfig,
    DataConfig,
    EncoderConfig,
    ExecutionConfig,
    ExperimentConfig,
    HeadConfig,
    LossConfig,
    Normalization,
    NormalizationConfig,
    OptimizerConfig,
    RandomizationConfig,
    Strategy,
    TrainingConfig,
)
from robopolicy.config.reading import (
    check_config_file,
    collect_lists,
    config_from_dict,
    config_to_dict,
    experiment_parser,
    plain_message,
    read_config,
)

__all__ = [
    "AugmentationConfig",
    "ConfigError",
    "DataConfig",
    "EncoderConfig",
    "ExecutionConfig",
    "ExperimentConfig",
    "HeadConfig",
    "LossConfig",
    "Normalization",
    "NormalizationConfig",
    "OptimizerConfig",
    "RandomizationConfig",
    "Strategy",
    "TrainingConfig",
    "check_config_file",
    "collect_lists",
    "config_from_dict",
    "config_to_dict",
    "experiment_parser",
    "plain_message",
    "read_config",
]
