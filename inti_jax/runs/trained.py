"""Load a trained model from a checkpoint of a run, or from a small file of what the run trained."""

import dataclasses
from pathlib import Path

import jax
import optax
from flax import nnx

from inti_jax.errors import UserError
from inti_jax.models.fold import fold
from inti_jax.models.parameters import Params
from inti_jax.models.video import VideoModel
from inti_jax.pretrained import sources
from inti_jax.pretrained.sources import is_run
from inti_jax.runs import checkpoint, initial, state, trained_file
from inti_jax.runs.record import RunRecord


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's record and its trained parameters by path."""

    record: RunRecord
    params: Params

    def for_inference(self) -> tuple[nnx.GraphDef[VideoModel], Params]:
        """Return the model and its parameters, with all that can be folded into the backbone folded."""
        model = self.record.config.model
        graphdef = nnx.graphdef(state.abstract_model(self.record, folded=True))
        return graphdef, jax.jit(lambda params: fold(model, params))(self.params)


def load(
    path: Path, mesh: jax.sharding.Mesh, *, pretrained: Path | None = None, step: checkpoint.Step = None
) -> Trained:
    """Load a trained model from a run's directory, or from a file that `convert --to trained` wrote.

    From a directory it loads the newest checkpoint, or that of `step`. A file is applied to the weights
    `pretrained`, by default those that its run named. Raises UserError where `path` holds no trained model,
    where the file and the weights do not belong together, or where a directory comes with `pretrained` or a
    file with `step`.
    """
    if not path.is_file():
        if pretrained is not None:
            raise UserError(f"{path} is a run, which has its own weights: leave out --pretrained")
        if not is_run(path) and sources.has_weights(path):
            raise UserError(
                f"{path} holds weights of another library, not a run: pass CLIP's weights as "
                "`model.pretrained` or to inti_jax.load_clip"
            )
        record = RunRecord.read(path)
        found = checkpoint.find(path, step)
        if found is None:
            raise UserError(f"{path} holds no finished checkpoint: give the directory of a run")
        return load_run(record, path, mesh, found)
    if step is not None:
        raise UserError(f"{path} is a file, not a run's directory: leave out --step")
    record = trained_file.read_record(path)
    model = dataclasses.replace(record.config.model, start_from=str(path))
    if pretrained is not None:
        model = dataclasses.replace(model, pretrained=str(pretrained))
    record = dataclasses.replace(record, config=dataclasses.replace(record.config, model=model))
    return start(dataclasses.replace(record, backbone=initial.find_backbone(model)), mesh)


def start(record: RunRecord, mesh: jax.sharding.Mesh) -> Trained:
    """Make the parameters that the run of `record` has before its first step."""
    target = state.abstract_state(record, optax.identity(), mesh)
    first = initial.initial_state(record, optax.identity(), target)
    return Trained(record, {**first.trainable, **first.frozen})


def load_run(record: RunRecord, workdir: Path, mesh: jax.sharding.Mesh, step: int) -> Trained:
    """Load the checkpoint of `step` in `workdir`, whose run `record` describes."""
    target = state.abstract_state(record, optax.identity(), mesh)
    return Trained(record, checkpoint.restore_params(workdir, step, {**target.trainable, **target.frozen}))
