"""Make of a model a function of its weights and of uint8 pixels, with what its users have to know."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

import inti_jax
from inti_jax.config.backbones import Backbone, called
from inti_jax.distributed import sharding
from inti_jax.hub.names import HubName, Place
from inti_jax.models import parameters
from inti_jax.models.parameters import Params
from inti_jax.models.video import normalize
from inti_jax.pretrained import converted, file_kinds, from_hub
from inti_jax.pretrained.clip_file import TRAINED, ClipFile, build
from inti_jax.pretrained.sources import is_run
from inti_jax.runs import checkpoint, state, trained, trained_file
from inti_jax.runs.evaluations import Weights
from inti_jax.runs.trained import Trained

DType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Portable:
    """A model for inference: normalisation is in it, and what folds into the backbone is folded.

    `function` takes the weights by path, and pixels: a video, `[B, T, H, W, 3]`, or images, `[B, H, W, 3]`.
    Its output is float32, whatever `dtype` it computes in.
    """

    function: Callable[[Params, UInt8[Array, "B *dims 3"]], Float[Array, "B N"]]
    params: Params
    dtype: DType
    output: str  # "logits" or "features"
    height_width: tuple[int, int]
    width: int  # N
    frames: int  # T of the clips that the model was trained on; 0 for images
    multiple: int  # T is a multiple of this
    sampling: dict[str, Any]  # how frames are chosen
    answer: dict[str, Any]  # how logits are read: labels, activation
    origin: dict[str, Any]  # what the model is

    @property
    def input(self) -> str:
        """The name of the input: "video" or "images"."""
        return "video" if self.frames else "images"

    @property
    def name(self) -> str:
        """The model for errors: its method and compression, or the tower."""
        if not self.frames:
            return f"the image tower of {self.origin['backbone']}"
        return f"method {self.origin['method']} with compression {self.origin['compression']}"

    def shape(self, batch: Any, frames: Any) -> tuple[Any, ...]:
        """Give the shape of the input; images have no frames."""
        return (batch, *((frames,) if self.frames else ()), *self.height_width, 3)

    def clips(self) -> UInt8[np.ndarray, "B *dims 3"]:
        """Make three inputs to compare with: noise, a ramp from black to white, a dark square that moves."""
        shape = self.shape(3, self.frames)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        pixels[1] = np.linspace(0, 255, shape[-2]).astype(np.uint8)[:, None]
        pixels[2] = 200
        height, width = self.height_width
        for index, frame in enumerate(pixels[2] if self.frames else pixels[2:]):
            left = (index * width // 8) % (width // 2)
            frame[height // 4 : height // 2, left : left + width // 4] = 30
        return pixels

    def metadata(self) -> dict[str, Any]:
        """Describe the input, the output and the preprocessing, for JSON."""
        told = {"trained_on": self.frames, "multiple_of": self.multiple}
        return {
            "made_by": {"inti_jax": inti_jax.__version__, "jax": jax.__version__},
            "input": {
                "name": self.input,
                "dtype": "uint8",
                "shape": self.shape("batch", "frames"),
                **({"frames": told} if self.frames else {}),
            },
            "output": {
                "name": self.output,
                "dtype": "float32",
                "shape": ("batch", self.width),
                **self.answer,
            },
            "preprocessing": {
                "colours": "RGB",
                "crop": "the largest central one with the proportions of the input",
                "resize": "bicubic; where it shrinks, the filter is wider, as Pillow's",
                "normalisation": "in the model",
                **self.sampling,
            },
            "model": {**self.origin, "dtype": self.dtype},
        }


def read(
    place: Place,
    *,
    features: bool = False,
    dtype: DType | None = None,
    step: checkpoint.Step = None,
    weights: Weights | None = None,
) -> Portable:
    """Read a trained model, from all that `trained.load` takes, or the image tower of a CLIP.

    A trained model computes in `dtype`, by default its `train.dtype`; a CLIP in float32. `step` and `weights`
    choose between those of a run's directory. Raises UserError as `trained.load` does for trained models, and
    as `converted.open_converted` for others.
    """
    path = _trained(place)
    if path is None:
        return of_clip(converted.open_converted(place), features=features)
    found = trained.load(path, sharding.one_device_mesh(), step=step, weights=weights)
    return of_trained(found, features=features, dtype=dtype)


def _trained(place: Place) -> Path | None:
    """Return the path of a trained model; None where `place` is something else."""
    path = from_hub.fetch(place) if isinstance(place, HubName) else place
    path = trained_file.locate(path)
    stated = file_kinds.stated_format(path) if path.is_file() else None
    return path if is_run(path) or stated == TRAINED else None


def of_trained(found: Trained, *, features: bool = False, dtype: DType | None = None) -> Portable:
    """Make the function of `inti_jax.load`: a video's logits, or with `features` what gives them."""
    record, settings = found.record, found.record.config
    dtype = dtype or settings.train.dtype
    changed = dataclasses.replace(
        settings,
        # A loop over blocks would stack their weights at each call.
        model=dataclasses.replace(settings.model, scan="off"),
        train=dataclasses.replace(settings.train, dtype=dtype),
    )
    record = dataclasses.replace(record, config=changed)
    graphdef, params = dataclasses.replace(found, record=record).for_inference()

    def function(params: Params, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B N"]:
        model = parameters.merge(graphdef, params)
        return (model.features(video) if features else model(video)).astype(jnp.float32)

    data, size, labels = settings.data, record.backbone.size, record.dataset.labels
    activation = "sigmoid" if settings.train.multi_label else "softmax"
    return Portable(
        function=function,
        params=params,
        dtype=dtype,
        output="features" if features else "logits",
        height_width=data.height_width,
        width=size.width if features else len(labels),
        frames=data.num_frames,
        multiple=state.abstract_model(record, folded=True).ratio,
        sampling={"sampling": data.sampling} | ({"stride": data.stride} if data.sampling == "dense" else {}),
        answer={} if features else {"labels": labels, "activation": activation},
        origin={
            "backbone": called(settings.model.backbone, size),
            "method": settings.model.adaptation,
            "compression": settings.model.compression.kind,
            "dataset": record.dataset.name,
            "weights": found.weights,
        },
    )


def of_clip(file: ClipFile, *, features: bool = False) -> Portable:
    """Make the function of `ClipModel.encode_image`, or with `features` that of `TowerModel.features`."""
    description, architecture = file.description, file.description.architecture
    image = architecture.image
    pixels = Backbone(image, architecture.numerics, description.mean, description.std)
    wanted = ("tower.",) if features else ("tower.", "projection.")
    params = {path: jnp.asarray(file[path].read()) for path in file if path.startswith(wanted)}
    projected = "projection.kernel" in params

    def function(params: Params, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B N"]:
        with jax.default_matmul_precision("highest"):
            model = build(architecture, params)
            normalised = normalize(images, pixels, jnp.float32)
            return model.tower(normalised) if features else model.encode_image(normalised)

    return Portable(
        function=function,
        params=params,
        dtype="float32",
        output="features",
        height_width=image.height_width,
        width=params["projection.kernel"].shape[1] if projected else image.width,
        frames=0,
        multiple=1,
        sampling={},
        answer={},
        origin={"backbone": called("auto", image), "projected": projected, "hash": file.hash},
    )
