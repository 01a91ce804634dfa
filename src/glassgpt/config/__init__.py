"""Configurations: frozen dataclasses, presets, TOML files, and ``key=value`` overrides."""

from glassgpt.config.layers import (
    ALIASES,
    SECTION_OF,
    SECTIONS,
    ConfigOverrides,
    OptionHelp,
    build,
    describe_options,
    differences,
    locate,
    parse_overrides,
    read_toml,
    write_toml,
)
from glassgpt.config.model import ModelConfig
from glassgpt.config.run import (
    DataConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
    TrainConfig,
    TuneConfig,
    parse_duration,
)

__all__ = [
    "ALIASES",
    "SECTIONS",
    "SECTION_OF",
    "ConfigOverrides",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "OptionHelp",
    "RunConfig",
    "RuntimeConfig",
    "TrainConfig",
    "TuneConfig",
    "build",
    "describe_options",
    "differences",
    "locate",
    "parse_duration",
    "parse_overrides",
    "read_toml",
    "write_toml",
]
