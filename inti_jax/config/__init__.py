"""The configuration of a run: every key with its default, read from files and checked before anything runs.

`schema` has the frozen dataclasses, `checks` what types cannot say, `parse` turns files, arguments and
overrides into a `Config`, `backbones` the sizes that `model.backbone` names. Everything may import it; it
imports errors and paths alone.
"""

from inti_jax.config.files import load_config
from inti_jax.config.parse import (
    ConfigError,
    defaults,
    from_dict,
    parse_arg,
    read_json,
    type_of,
)
from inti_jax.config.schema import (
    SCALES,
    TEMPORAL_OF,
    Aim,
    Checkpoint,
    Compression,
    Config,
    Data,
    EarlyStop,
    Erase,
    Eval,
    Head,
    Hosts,
    Jitter,
    Lora,
    LoraTarget,
    Mesh,
    Mix,
    Model,
    RandAugment,
    Scale,
    StAdapter,
    Train,
    ZeroI2V,
)

__all__ = [
    "SCALES",
    "TEMPORAL_OF",
    "Aim",
    "Checkpoint",
    "Compression",
    "Config",
    "ConfigError",
    "Data",
    "EarlyStop",
    "Erase",
    "Eval",
    "Head",
    "Hosts",
    "Jitter",
    "Lora",
    "LoraTarget",
    "Mesh",
    "Mix",
    "Model",
    "RandAugment",
    "Scale",
    "StAdapter",
    "Train",
    "ZeroI2V",
    "defaults",
    "from_dict",
    "load_config",
    "parse_arg",
    "read_json",
    "type_of",
]
