"""Load a trained model from a checkpoint of a run, or from a small file of what the run trained."""

import dataclasses
import logging
from pathlib import Path

import jax
import optax
from flax import nnx

from inti_jax.errors import UserError
from inti_jax.hub.names import Place
from inti_jax.models.fold import fold
from inti_jax.models.parameters import Params
from inti_jax.models.video import VideoModel
from inti_jax.pretrained import loading, sources
from inti_jax.pretrained.sources import is_run
from inti_jax.runs import checkpoint, initial, state, trained_file
from inti_jax.runs.backbone import find_backbone
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.record import RunRecord

log = logging.getLogger("inti_jax")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's record and its trained parameters by path; `weights` says which ones they are."""

    record: RunRecord
    params: Params
    weights: Weights

    def for_inference(self) -> tuple[nnx.GraphDef[VideoModel], Params]:
        """Return the model and its parameters, with all that can be folded into the backbone folded."""
        model = self.record.config.model
        graphdef = nnx.graphdef(state.abstract_model(self.record, folded=True))
        return graphdef, jax.jit(lambda params: fold(model, params))(self.params)


def load(
    place: Place,
    mesh: jax.sharding.Mesh,
    *,
    pretrained: Place | None = None,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
) -> Trained:
    """Load a trained model from a run's directory, or from a file of `convert` of what was trained.

    The file may also be in the directory of a shared model, here or on the Hub, see `trained_file.locate`.
    From a directory it loads the newest checkpoint, or that of `step`. Of that it loads the `weights` that
    are asked for, by default the moving average (`train.ema`) where there is one. A file is applied to the
    weights `pretrained`, by default those that its run named, unless it holds the image tower itself. Raises
    UserError where `place` holds no trained model or not these `weights`, where the file and the weights do
    not belong together, or where a directory or a file with its tower comes with `pretrained`, or a file with
    `step`.
    """
    path = trained_file.locate(place)
    record = read_record(path, pretrained)
    if not path.is_file():
        found = checkpoint.find(path, step)
        if found is None:
            raise UserError(f"{path} holds no finished checkpoint: give the directory of a run")
        return load_run(record, path, mesh, found, weights)
    if step is not None:
        raise UserError(f"{path} is a file, not a run's directory: leave out --step")
    holds = trained_file.read_weights(path)
    if weights not in (None, holds):
        raise UserError(
            f"{path} holds the {holds} weights of a run, not the {weights} ones: `python -m inti_jax.convert "
            f"RUN --to trained --weights {weights}` makes a file of those"
        )
    if trained_file.is_whole(path):
        return Trained(record, _whole(path, record, mesh), holds)
    started = start(dataclasses.replace(record, backbone=find_backbone(record.config)), mesh)
    return dataclasses.replace(started, weights=holds)


def read_record(place: Place, pretrained: Place | None = None) -> RunRecord:
    """Read the record of a run, or of a file of what was trained, whose config then names the file.

    See `load` for `pretrained` and the errors.
    """
    path = trained_file.locate(place)
    if not path.is_file():
        if pretrained is not None:
            raise UserError(f"{path} is a run, which has its own weights: leave out --pretrained")
        if not is_run(path) and sources.has_weights(path):
            raise UserError(
                f"{path} holds weights of another library, not a run: pass CLIP's weights as "
                "`model.pretrained` or to inti_jax.load_clip"
            )
        return RunRecord.read(path)
    record = trained_file.read_record(path)
    model = dataclasses.replace(record.config.model, start_from=str(path))
    if pretrained is not None and (trained_file.holds_tower(path) or trained_file.is_whole(path)):
        raise UserError(f"{path} holds its own backbone: leave out --pretrained")
    if trained_file.holds_tower(path):
        pretrained = path
    if pretrained is not None:
        model = dataclasses.replace(model, pretrained=str(pretrained))
    return dataclasses.replace(record, config=dataclasses.replace(record.config, model=model))


def _whole(path: Path, record: RunRecord, mesh: jax.sharding.Mesh) -> Params:
    """Load all parameters from a file that holds them."""
    target = state.abstract_state(record, optax.identity(), mesh)
    shapes = {**target.trainable, **target.frozen}
    leaves = trained_file.leaves(path, record)
    return {name: loading.place(leaves[name], shape, shape.sharding) for name, shape in shapes.items()}


def start(record: RunRecord, mesh: jax.sharding.Mesh) -> Trained:
    """Make the parameters that the run of `record` has before its first step."""
    target = dataclasses.replace(state.abstract_state(record, optax.identity(), mesh), ema=None)
    first = initial.initial_state(record, optax.identity(), target)
    return Trained(record, {**first.trainable, **first.frozen}, "raw")


def load_run(
    record: RunRecord,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    step: int,
    weights: Weights | None = None,
) -> Trained:
    """Load the checkpoint of `step` in `workdir`, whose run `record` describes; for `weights` see `load`.

    Raises UserError where the average is asked for and the checkpoint has none.
    """
    averaged = checkpoint.has_average(workdir, step)
    if weights == "ema" and not averaged:
        raise UserError(
            f"the checkpoint of step {step} in {workdir} has no averaged weights: the run was trained with "
            "`train.ema` = 0; take its raw weights"
        )
    averaged = averaged and weights != "raw"
    if averaged:
        log.info("%s: the averaged weights (`train.ema`) of step %d", workdir, step)
    target = state.abstract_state(record, optax.identity(), mesh)
    params = checkpoint.restore_params(
        workdir, step, {**target.trainable, **target.frozen}, target.trainable if averaged else ()
    )
    return Trained(record, params, "ema" if averaged else "raw")
