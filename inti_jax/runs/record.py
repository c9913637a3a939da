"""Record a run's config, dataset and backbone in config.json, and check what may change on resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pydantic
from flax import traverse_util

from inti_jax import config
from inti_jax.config import Config, ConfigError
from inti_jax.config.backbones import BACKBONES, Backbone
from inti_jax.data.dataset import VideoDataset
from inti_jax.errors import naming
from inti_jax.runs import layout

# Settings that may differ when a run goes on: where things are and how fast, not what is computed.
_FREE = (
    "model.pretrained",  # the backbone's hash is compared instead
    "backbone.size.resolution",  # the hash tells it too, and records of old runs do not have it
    "model.start_from",
    "model.scan",
    "model.remat",
    "model.attention",
    "data.data_dir",
    "data.cache_dir",
    "data.cache_gb",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.max_bad_share",
    "train.accumulate",
    "train.compiler_options",
    "train.ema",  # an average starts from the weights of the checkpoint where there is none
    "train.steps",  # but no fewer than are done
    "train.epochs",
    "train.early_stop",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_videos",
    "train.writers",
    "eval",
    "mesh",
    "checkpoint",
    "hosts",
)


def fixed(settings: Config) -> dict[str, Any]:
    """Return the settings that have to stay the same while a run goes on, by dotted key."""
    flat = traverse_util.flatten_dict(dataclasses.asdict(settings), sep=".")
    return {key: value for key, value in flat.items() if not _is_free(key)}


def _is_free(key: str) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in _FREE)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The dataset that a run was trained on; `labels[k]` is the name of class k."""

    name: str
    version: str
    sha256: str
    labels: tuple[str, ...]

    @staticmethod
    def of(dataset: VideoDataset) -> "Dataset":
        """Describe `dataset` from its manifest."""
        facts = dataset.manifest
        return Dataset(facts["name"], facts["version"], facts["sha256"], dataset.labels)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The contents of config.json: enough to rebuild the model and name its classes."""

    config: Config
    dataset: Dataset
    backbone: Backbone

    def write(self, workdir: Path) -> None:
        """Write config.json atomically, making `workdir`. Only process 0 should call it."""
        workdir.mkdir(parents=True, exist_ok=True)
        path = layout.config_path(workdir)
        partial = path.with_suffix(".partial")
        with naming(partial):
            partial.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        partial.replace(path)

    @staticmethod
    def read(workdir: Path) -> "RunRecord":
        """Read the record of a run. Raises ConfigError where `workdir` is not a run's directory."""
        path = layout.config_path(workdir)
        return RunRecord.from_json(config.read_json(path), path)

    def to_json(self) -> dict[str, Any]:
        """Return the object that config.json holds."""
        return dataclasses.asdict(self.config) | {
            "dataset": dataclasses.asdict(self.dataset),
            "backbone": dataclasses.asdict(self.backbone),
        }

    def flat(self) -> dict[str, Any]:
        """Return all values by dotted key: `config.train.seed`, `dataset.name`."""
        return traverse_util.flatten_dict(dataclasses.asdict(self), sep=".")

    @staticmethod
    def from_json(values: Any, path: Path) -> "RunRecord":
        """Make a record from `values`, read from `path`. Raises ConfigError where they are no record."""
        try:
            dataset = pydantic.TypeAdapter(Dataset).validate_python(values.pop("dataset"))
            facts = values.pop("backbone")
            if "size" not in facts:  # in records of old runs the name alone says it
                facts["size"] = dataclasses.asdict(BACKBONES[values["model"]["backbone"]])
            backbone = pydantic.TypeAdapter(Backbone).validate_python(facts)
        except (AttributeError, KeyError, TypeError, pydantic.ValidationError):
            raise ConfigError(
                f"{path} does not describe the run's dataset and backbone: put back the file that the "
                "training wrote"
            ) from None
        return RunRecord(config.from_dict(values, backbone.size), dataset, backbone)

    def check_continues(self, earlier: "RunRecord", workdir: Path) -> None:
        """Raise ConfigError where this run cannot go on from a checkpoint of `earlier`."""
        ours, theirs = self.flat(), earlier.flat()
        if self.backbone.size.alike(earlier.backbone.size):  # one of them may be "auto"
            ours["config.model.backbone"] = theirs["config.model.backbone"]
        # The size last: where it differs, its name says so.
        keys = sorted(ours.keys() | theirs.keys(), key=lambda key: (key.startswith("backbone.size"), key))
        for key in keys:
            name = key.removeprefix("config.")
            if not _is_free(name) and ours.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{workdir} holds checkpoints of another run, where `{name}` is {theirs.get(key)!r}; "
                    f"here it is {ours.get(key)!r}: choose another --workdir, or the same config"
                )
