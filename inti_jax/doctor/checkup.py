"""Try each layer of a run on its own, with its own code, time it, and name a remedy where it fails."""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from inti_jax import config
from inti_jax.config import Config
from inti_jax.config.backbones import called
from inti_jax.errors import UsageError, UserError, naming
from inti_jax.host import limits, stores

log = logging.getLogger("inti_jax")

# The coordinator's address, the number of processes, and the index of this one.
ProcessFlags = tuple[str | None, int | None, int | None]

_BURST_SECONDS = 2.0
# Size of the dataset that is rendered where no config names one.
_MOVEMENTS = {"train": 20, "val": 10}

_LESS_MEMORY = (
    "if memory is short: lower train.global_batch, or set train.accumulate or model.remat; python -m "
    "inti_jax.plan shows the memory of a view"
)
_REMEDIES = {
    "packages": "install the required versions: in a checkout, pip install -r requirements.txt",
    "decoder": "install PyAV's wheel, which brings FFmpeg: pip install --force-reinstall av",
    "devices": "check the driver, JAX_PLATFORMS, and that jax[tpu] or jax[cuda13] is installed",
    "processes": "check the installation of jax and, with several hosts, the network between them",
    "host": "raise the hard limit of open files (ulimit -Hn), or set data.workers lower",
    "mesh": "set mesh.data, mesh.fsdp and mesh.tensor, and batches that are multiples of data x fsdp",
    "weights": "python -m inti_jax.convert SRC --out F.safetensors, and set model.pretrained to F",
    "dataset": "run python -m inti_jax.prepare --check DIR to list the damage, or prepare the dataset again",
    "workdir": "choose another --workdir, on a disk that has room and that this user may write to",
    "compile": _LESS_MEMORY,
    "step": _LESS_MEMORY,
    "checkpoint": "choose another --workdir, one that all hosts share and that has room",
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """The result of one layer. `detail` says what there is, what is wrong, or which layers it needs."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    seconds: float
    detail: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """The layers in order, and the index of the process that tried them."""

    layers: list[Layer]
    process_index: int


def examine(
    settings: Config | None, workdir: Path | None, temporary: Path, flags: ProcessFlags = (None, None, None)
) -> Findings:
    """Try every layer, in order, and skip those that need a layer that is not well.

    Without `settings` it tries a tiny run on videos that are rendered into `temporary`. Without `workdir` the
    checkpoint is written there, too. `flags` are those of `joining.joined`. Raises UsageError for flags that
    make no sense.
    """
    patient = _Patient(settings, workdir, temporary, flags)
    examinations: list[tuple[str, tuple[str, ...], Callable[[], str]]] = [
        ("packages", (), patient.packages),
        ("decoder", (), patient.decoder),
        ("processes", (), patient.processes),
        ("devices", ("processes",), patient.devices),
        ("host", (), patient.host),
        ("mesh", ("devices",), patient.mesh_divides),
        ("weights", (), patient.weights),
        ("dataset", ("processes",), patient.dataset),
        ("workdir", (), patient.writable),
        ("compile", ("mesh", "weights", "dataset"), patient.compile),
        ("step", ("compile",), patient.step),
        ("checkpoint", ("step", "workdir"), patient.checkpoint),
    ]
    layers: dict[str, Layer] = {}
    with patient.joined:
        for name, needs, run in examinations:
            missing = [need for need in needs if layers[need].status != "ok"]
            if missing:
                layers[name] = Layer(name, "skipped", 0.0, f"needs {', '.join(missing)}")
                continue
            log.info("checking %s", name)
            layers[name] = _try(name, run)
    return Findings(list(layers.values()), patient.index)


def _try(name: str, run: Callable[[], str]) -> Layer:
    """Try one layer, and turn what it raises into a failed layer with its remedy."""
    started = time.perf_counter()
    try:
        detail = run()
    except UsageError:
        raise
    except UserError as error:
        found = Layer(name, "failed", 0.0, str(error), _REMEDIES[name])
    except OSError as error:
        found = Layer(name, "failed", 0.0, f"{error.filename}: {error.strerror}", _REMEDIES[name])
    except Exception as error:  # a broken machine may raise anything, and the other layers are still tried
        log.info("%s", traceback.format_exc().rstrip())
        reason = str(error).strip().partition("\n")[0]
        found = Layer(name, "failed", 0.0, f"{type(error).__name__}: {reason}", _REMEDIES[name])
    else:
        found = Layer(name, "ok", 0.0, detail)
    return dataclasses.replace(found, seconds=time.perf_counter() - started)


class _Patient:
    """The run under examination, with a method for each layer.

    A method returns a line on what it found, or raises. It keeps what later layers need.
    """

    def __init__(self, settings: Config | None, workdir: Path | None, temporary: Path, flags: ProcessFlags):
        self._given, self._workdir, self._temporary, self._flags = settings, workdir, temporary, flags
        self.joined = contextlib.ExitStack()  # while it is open, this process has joined the run's others
        self.index, self._count = flags[2] or 0, flags[1] or 1
        self._device_count: int | None = None  # None until the devices are found to be well

    @functools.cached_property
    def _settings(self) -> Config:
        if self._given is not None:
            return self._given
        batch = 8 * (self._device_count or 1)
        return dataclasses.replace(
            Config(),
            model=config.Model(pretrained="random", compression=config.Compression(kind="inti", after=(1,))),
            data=config.Data(
                name="motion_digits", data_dir=str(self._temporary / "data"), stride=2, resolution=32
            ),
            train=config.Train(steps=10, global_batch=batch),
            eval=config.Eval(batch=batch),
        )

    def packages(self) -> str:
        """Compare the installed packages with the requirements."""
        from importlib import metadata

        from packaging.requirements import Requirement

        wrong, found = [], []
        for requirement in map(Requirement, _requirements()):
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                wrong.append(f"{requirement.name} is not installed")
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
            if requirement.name in ("jax", "flax", "orbax-checkpoint", "grain", "av"):
                found.append(f"{requirement.name} {version}")
        if wrong:
            raise UserError("; ".join(wrong))
        return ", ".join(found)

    def decoder(self) -> str:
        """Encode a few frames, and compare them with the decoded ones."""
        import numpy as np

        from inti_jax.data.codec import decode, encode

        # A brighter band moves down by its height each frame: mixed-up or grey frames would show.
        frames = np.full((16, 64, 64, 3), 40, np.uint8)
        for t, frame in enumerate(frames):
            frame[4 * t : 4 * t + 4] = 200
        wanted = np.arange(1, 16, 3)
        got = decode.decode_frames(encode.encode(frames, 12), wanted, len(frames))
        error = np.abs(got.astype(int) - frames[wanted]).mean()
        if error > 8:
            raise UserError(f"decoded frames differ from the encoded ones by {error:.0f} of 255 on average")
        return f"H.264, {len(wanted)} of {len(frames)} frames decoded"

    def processes(self) -> str:
        """Join the processes of the run."""
        import jax  # a broken installation fails here

        from inti_jax.distributed import coordination, joining

        limits_of_silence = config.Hosts() if self._given is None else self._given.hosts
        self.joined.enter_context(joining.joined(*self._flags, limits_of_silence))
        self.index, self._count = coordination.place()
        which = "one process" if self._count == 1 else f"process {self.index} of {self._count}"
        return f"JAX {jax.__version__}, {which}"

    def devices(self) -> str:
        """Start JAX, and list its devices."""
        import jax

        from inti_jax.distributed import backend
        from inti_jax.host.chips import chip_of

        backend.start()
        kinds = {device.device_kind: chip_of(device) for device in jax.devices()}
        known = [f"{kind} ({chip.memory_gib} GiB)" if chip else kind for kind, chip in kinds.items()]
        of = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
        self._device_count = jax.device_count()
        return f"{self._device_count} x {', '.join(known)}{of}"

    def host(self) -> str:
        """Report the cores, and compare the open files that a run needs with the limits."""
        from inti_jax.data.loading import batches, processes

        cores, quota = limits.cores(), limits.cpu_quota()
        allowed = f"{cores} cores" + (f" (a CPU quota of {quota:.3g})" if quota is not None else "")
        data, batch = self._settings.data, self._settings.train.global_batch
        # The processes share the batch. Without devices, count the workers that accelerators would have.
        batch = max(1, batch // self._count)
        workers = batches.worker_count(data, batch) if self._device_count else max(data.workers, cores - 1)
        needed = limits.open_files() + limits.SPARE_FILES + processes.files_needed(workers)
        soft, most = limits.file_limits()
        files = f"{workers} workers and the run take {needed} of {soft} open files"
        if needed > most:
            raise UserError(f"{allowed}; {files}, and the hard limit is {most}")
        return f"{allowed}; {files}" + (f", which is raised to {most}" if needed > soft else "")

    def mesh_divides(self) -> str:
        """Make the mesh, and check that it divides the batches."""
        from inti_jax.distributed import sharding

        settings = self._settings
        self.mesh = sharding.make_mesh(settings.mesh)
        micro = settings.train.global_batch // settings.train.accumulate
        sharding.check_batch(micro, "train.global_batch", self.mesh)
        sharding.check_batch(settings.eval.batch, "eval.batch", self.mesh)
        sizes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
        return f"{sizes}; {settings.train.global_batch} videos a step"

    def weights(self) -> str:
        """Open the pretrained weights, and check their hash."""
        from inti_jax.pretrained.clip_file import content_hash
        from inti_jax.pretrained.converted import open_converted
        from inti_jax.runs.backbone import find_backbone

        model = self._settings.model
        self.backbone = find_backbone(self._settings)
        if model.pretrained == "random":
            return "random, as set in the config"
        file = open_converted(model.pretrained)
        if content_hash(file) != file.hash:
            raise UserError(
                f"{model.pretrained} was changed after it was written: its weights do not match its hash"
            )
        return f"{model.pretrained}: {called(model.backbone, self.backbone.size)}, sha256 {file.hash[:16]}"

    def dataset(self) -> str:
        """Open the dataset, check that its training clips decode, and measure the loading rate."""
        from inti_jax.data import pipeline, views
        from inti_jax.data.dataset import check_loss, open_dataset

        settings = self._settings
        if self._given is None:
            from inti_jax.data.builders.motion_digits import MotionDigits

            MotionDigits(data_dir=settings.data.data_dir, movements=_MOVEMENTS).build()
        self.train = open_dataset(settings.data.name, settings.data.data_dir, "train")
        validation = open_dataset(settings.data.name, settings.data.data_dir, "val")
        check_loss(self.train, settings.train.loss)
        views.check(validation, settings.data, settings.eval)
        data = settings.data
        if self._device_count is None and data.workers < 0:
            data = dataclasses.replace(data, workers=0)  # the number that suits depends on the devices
        batches = pipeline.train_batches(
            self.train,
            data,
            seed=settings.train.seed,
            global_batch=settings.train.global_batch,
            num_steps=10_000,
        )
        with contextlib.closing(batches):
            self.batch = next(batches)
            clips, bad, started = 0, int((~self.batch["mask"]).sum()), time.perf_counter()
            while time.perf_counter() - started < _BURST_SECONDS:
                mask = next(batches)["mask"]
                clips, bad = clips + len(mask), bad + int((~mask).sum())
            rate = clips / (time.perf_counter() - started)
        total = clips + len(self.batch["mask"])
        if bad:
            raise UserError(
                f"{bad} of {total} training clips do not decode: {self.train.directory} is damaged"
            )
        return f"{len(self.train)} + {len(validation)} videos; {total} clips decode, {rate:.0f} a second"

    def writable(self) -> str:
        """Write a probe to the run's directory, and read the free space of its disk, if it is on one."""
        with _made(self._root):
            probe = self._root / f".doctor-{self.index}"
            with naming(probe), probe.open("w") as file:
                file.write("probe")
                os.fsync(file.fileno())
            if url := stores.origin(probe):
                stores.upload(probe, url)
                stores.delete(url)
            probe.unlink()
            self.free = math.inf if url else shutil.disk_usage(self._root).free
        if url:
            return f"{stores.shown(str(self._root))}: files can be written and deleted"
        return f"{self._root}: {self.free / 2**30:.1f} GiB free"

    @property
    def _root(self) -> Path:
        return self._workdir or self._temporary

    def compile(self) -> str:
        """Compile the training step."""
        import jax
        from flax import nnx

        from inti_jax.distributed import sharding
        from inti_jax.runs import compilation, state
        from inti_jax.runs.record import Dataset, RunRecord
        from inti_jax.training import optim, train_step

        settings = self._settings
        self.record = RunRecord(settings, Dataset.of(self.train), self.backbone)
        model = state.abstract_model(self.record)
        self.transform, schedule = optim.make_optimizer(settings.train, max(settings.train.steps, 1))
        self.target = state.abstract_state(self.record, self.transform, self.mesh)
        rows = sharding.host_rows(self.mesh, settings.train.global_batch)
        own = jax.tree.map(lambda array: array[rows], dict(self.batch))
        self.placed = sharding.place_batch(own, self.mesh)
        step_fn = train_step.compile_step(
            settings, nnx.graphdef(model), self.transform, schedule, self.target, self.mesh
        )
        self.compiled = step_fn.lower(self.target, self.placed).compile()
        peak = compilation.peak_bytes(self.compiled)
        return "the training step" if peak is None else f"the training step; {peak / 2**30:.2f} GiB a device"

    def step(self) -> str:
        """Run one training step from the initial state."""
        import jax

        from inti_jax.host import memory
        from inti_jax.runs import initial

        self.state = initial.initial_state(self.record, self.transform, self.target)
        started = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.placed)
        loss = float(jax.block_until_ready(metrics)["loss"])
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise UserError(f"the loss of the first step is {loss}")
        peak = memory.device_bytes().get("hbm_peak_bytes")
        return f"loss {loss:.3f} in {seconds:.2f} s" + (f", peak {peak / 2**30:.2f} GiB" if peak else "")

    def checkpoint(self) -> str:
        """Save a checkpoint, restore it, and compare the two states."""
        import jax
        import numpy as np
        from jax.experimental import multihost_utils

        from inti_jax.runs import checkpoint

        if jax.process_count() > 1 and self._workdir is None:
            raise UserError(
                "several hosts write a checkpoint together: give a --workdir that all of them share"
            )
        leaves = jax.tree.leaves(self.state)
        size = sum(leaf.nbytes for leaf in leaves)
        keep = self._settings.checkpoint
        needed = size * (keep.keep + keep.keep_best + 1)
        if self.free < needed:
            raise UserError(
                f"{self._root} has {self.free / 2**30:.1f} GiB free; the kept checkpoints and the next one "
                f"take {needed / 2**30:.1f} GiB"
            )
        scratch = self._root / ".doctor"
        with _made(self._root), contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                _remove(scratch)  # left by a doctor that was killed
                stack.callback(_remove, scratch)
            with checkpoint.CheckpointManager(scratch, keep, start=None) as checkpoints:
                started = time.perf_counter()
                checkpoints.save(1, self.state, {"next_step": 1, "bad": 0})
                checkpoints.wait()
                multihost_utils.sync_global_devices("saved")  # the first host gives the checkpoint its name
                saved = time.perf_counter()
            restored, position = checkpoint.restore(scratch, 1, self.target)
            jax.block_until_ready(restored)
            ended = time.perf_counter()
            multihost_utils.sync_global_devices("restored")  # until all have restored it: then it is deleted
        same = all(
            np.array_equal(a.data, b.data)
            for ours, theirs in zip(leaves, jax.tree.leaves(restored), strict=True)
            for a, b in zip(ours.addressable_shards, theirs.addressable_shards, strict=True)
        )
        if not same or position["next_step"] != 1:
            raise UserError("the restored state differs from the saved state")
        return f"{size / 2**20:.1f} MiB saved in {saved - started:.1f} s, restored in {ended - saved:.1f} s"


@contextlib.contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Make `directory` for the context. A directory made here that stays empty is removed at the end."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()


def _requirements() -> list[str]:
    """Read the requirements of a run, from the checkout or else from the installed package."""
    from importlib import metadata

    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        import tomllib

        return tomllib.loads(project.read_text())["project"]["dependencies"]
    return [each for each in metadata.requires("inti_jax") or () if "extra ==" not in each]


def _remove(directory: Path) -> None:
    """Delete a directory, if it is there, and what it stands for in a store."""
    shutil.rmtree(directory, ignore_errors=True)
    if url := stores.origin(directory):
        stores.delete(url)
