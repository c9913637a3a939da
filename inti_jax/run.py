"""A run's directory: which files it holds, and the record of its config and dataset (config.json)."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pydantic

from inti_jax import config, locks
from inti_jax.config import Config, ConfigError
from inti_jax.data.dataset import VideoDataset
from inti_jax.errors import UserError, naming
from inti_jax.models.backbone import Backbone

# What may differ when a run goes on: where things are and how fast, not what is computed.
_FREE = (
    "model.pretrained",  # the backbone's hash is compared instead
    "model.start_from",
    "model.scan",
    "model.remat",
    "data.data_dir",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.max_bad_share",
    "train.accumulate",
    "train.steps",  # not fewer than are done
    "train.epochs",
    "train.early_stop",
    "train.log_every_steps",
    "train.eval_every_steps",
    "eval",
    "mesh",
    "checkpoint",
    "hosts",
)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The dataset a run was trained on. `labels[k]` is the name of class k."""

    name: str
    version: str
    sha256: str
    labels: tuple[str, ...]

    @staticmethod
    def of(dataset: VideoDataset) -> "Dataset":
        facts = dataset.manifest
        return Dataset(facts["name"], facts["version"], facts["sha256"], dataset.labels)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What config.json holds: enough to rebuild the model and name its classes."""

    config: Config
    dataset: Dataset
    backbone: Backbone

    def write(self, workdir: Path) -> None:
        """Writes config.json in one step, making `workdir`; for the first host."""
        workdir.mkdir(parents=True, exist_ok=True)
        path = config_path(workdir)
        partial = path.with_suffix(".partial")
        with naming(partial):
            partial.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        partial.replace(path)

    @staticmethod
    def read(workdir: Path) -> "RunRecord":
        """Raises ConfigError where `workdir` is not a run's directory."""
        path = config_path(workdir)
        return RunRecord.from_json(config.read_json(path), path)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config) | {
            "dataset": dataclasses.asdict(self.dataset),
            "backbone": dataclasses.asdict(self.backbone),
        }

    @staticmethod
    def from_json(values: Any, path: Path) -> "RunRecord":
        """Raises ConfigError, naming `path`, where `values` are no record."""
        try:
            dataset = pydantic.TypeAdapter(Dataset).validate_python(values.pop("dataset"))
            backbone = pydantic.TypeAdapter(Backbone).validate_python(values.pop("backbone"))
        except (AttributeError, KeyError, TypeError, pydantic.ValidationError):
            raise ConfigError(f"{path} does not describe the run's dataset and backbone") from None
        return RunRecord(config.from_dict(values), dataset, backbone)

    def check_continues(self, earlier: "RunRecord", workdir: Path) -> None:
        """Raises ConfigError where a checkpoint of `earlier` cannot go on as this run."""
        ours, theirs = flat(dataclasses.asdict(self)), flat(dataclasses.asdict(earlier))
        for key in sorted(ours.keys() | theirs.keys()):
            name = key.removeprefix("config.")
            free = any(name == prefix or name.startswith(prefix + ".") for prefix in _FREE)
            if not free and ours.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{workdir} holds checkpoints of another run: there `{name}` is {theirs.get(key)!r}, "
                    f"here it is {ours.get(key)!r}; choose another --workdir, or the same config"
                )


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep other runs out of `workdir`, which is made; for the first host, others have no part.

    Raises UserError where another run is in it. What ends a process, however hard, ends its lock; a directory
    in which nothing was written is removed again.
    """
    if jax.process_index() != 0:
        yield
        return
    made = not workdir.exists()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(workdir / "lock"))
        except locks.HeldError as error:
            raise UserError(
                f"{workdir} is in use by {error}: wait for it to end, or choose another --workdir"
            ) from None
        try:
            yield
        finally:
            stack.close()
            if made:
                with contextlib.suppress(OSError):  # what it has by now stays
                    workdir.rmdir()


def is_run(path: Path) -> bool:
    """Whether `path` is a run's directory with checkpoints."""
    return config_path(path).is_file() and checkpoint_dir(path).is_dir()


def config_path(workdir: Path) -> Path:
    return workdir / "config.json"


def metrics_path(workdir: Path) -> Path:
    return workdir / "metrics.jsonl"


def checkpoint_dir(workdir: Path) -> Path:
    return workdir / "checkpoints"


def tensorboard_dir(workdir: Path) -> Path:
    return workdir / "tensorboard"


def compiled_dir(workdir: Path) -> Path:
    return workdir / "compiled"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a.b": value}` of nested dicts."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
