"""Define the configuration of a run, read it from files, and check it before anything runs.

- `schema`: frozen dataclasses with every key and its default.
- `checks`: checks that types cannot express.
- `files`: config files and overrides, read as a `Config`.
- `literals`: values as users write them.
- `parse`: values checked and frozen as a `Config`; defaults, and arguments of config files.
- `backbones`: the sizes that `model.backbone` names.
- `resolution`: the side of a square, or height and width.

Any package may import it. It imports `errors` and `host.paths` only.
"""

from inti_jax.config.files import load_config, recipes
from inti_jax.config.parse import (
    ConfigError,
    check_size,
    defaults,
    from_dict,
    parse_arg,
    read_json,
    type_of,
)
from inti_jax.config.schema import (
    GROUPS,
    MULTI_LABEL_LOSSES,
    SCALES,
    SINGLE_LABEL_LOSSES,
    TEMPORAL_OF,
    Aim,
    Checkpoint,
    Compression,
    Config,
    Data,
    EarlyStop,
    Erase,
    Eval,
    Group,
    Head,
    Hosts,
    Jitter,
    Lora,
    LoraTarget,
    LossName,
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
    "GROUPS",
    "MULTI_LABEL_LOSSES",
    "SCALES",
    "SINGLE_LABEL_LOSSES",
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
    "Group",
    "Head",
    "Hosts",
    "Jitter",
    "Lora",
    "LoraTarget",
    "LossName",
    "Mesh",
    "Mix",
    "Model",
    "RandAugment",
    "Scale",
    "StAdapter",
    "Train",
    "ZeroI2V",
    "check_size",
    "defaults",
    "from_dict",
    "load_config",
    "parse_arg",
    "read_json",
    "recipes",
    "type_of",
]
