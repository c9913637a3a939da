"""Trainings to compare between numbers of processes and devices.

A program of the suite (hosts_test.py). By hand, `python -m tests.distributed.hosts --all` runs every
combination of a method and a mesh for 30 steps, as two processes of four simulated devices, one of eight and
one of one, and prints how far the losses are apart.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from inti_jax.config import Config
from inti_jax.config.backbones import BACKBONES
from tests.processes import environment, free_address
from tests.unreported import without_reports

METHODS = ("full", "st_adapter", "zero_i2v")
MESHES = {
    "data=8": {"data": 8},
    "data=2 fsdp=4": {"data": 2, "fsdp": 4},
    "data=2 fsdp=2 tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}
STEPS = 30  # by hand
SHALLOW = dataclasses.replace(BACKBONES["tiny"], layers=2)
# (processes, devices of each)
LAYOUTS = ((2, 4), (1, 8), (1, 1))


def run_directory(out: Path, method: str, mesh: str, layout: tuple[int, int]) -> Path:
    return out / f"{method}, {mesh}, {layout[0]}x{layout[1]}"


def run_settings(out: Path, method: str, steps: int = STEPS, **changes: Any) -> Config:
    """The configuration of the run of `method` on what `prepare` made; `changes` as of `tiny`."""
    from tests.configs import INTI, tiny

    return tiny(
        out / "data",
        **INTI,
        model__pretrained="random" if method == "full" else str(out / "clip.safetensors"),
        model__adaptation=method,
        model__st_adapter__width=16,
        data__num_frames=4,
        # Of which early stopping leaves half: no evaluation is better than the first by more than 1.
        train__steps=2 * steps,
        train__eval_every_steps=steps // 2,
        train__early_stop__patience=1,
        train__early_stop__min_delta=1.0,
        train__ema=0.9,
        checkpoint__every_steps=1000,
        **changes,
    )


def work(out: Path, combinations: list[list[str]], layout: tuple[int, int], steps: int, flags: tuple) -> None:
    """One process of one layout. `out` holds the dataset and the weights."""
    import jax
    from jax.experimental import multihost_utils

    from inti_jax import config
    from inti_jax.data.pipeline import TrainOrder
    from inti_jax.distributed import joining, sharding
    from inti_jax.training import loop

    BACKBONES["tiny"] = SHALLOW
    with joining.joined(*flags, config.Hosts()), without_reports():
        for method, mesh_name in combinations:
            sizes = MESHES[mesh_name] if layout != (1, 1) else {}
            start_from = out / f"{method}.safetensors"
            settings = run_settings(
                out,
                method,
                steps,
                model__start_from=str(start_from) if start_from.exists() else "",
                **{f"mesh__{axis}": size for axis, size in sizes.items()},
            )
            directory = run_directory(out, method, mesh_name, layout)
            with mock.patch.object(
                multihost_utils, "assert_equal", wraps=multihost_utils.assert_equal
            ) as spy:
                loop.train(settings, directory)
            (directory / f"compared-{jax.process_index()}.json").write_text(str(spy.call_count))
            # What this host's rows see in the first two epochs.
            rows = sharding.host_rows(sharding.make_mesh(settings.mesh), 8)
            order = TrainOrder(40, seed=0, global_batch=8, num_steps=10, rows=rows)
            seen = [order[k][:2] for k in range(len(order))]
            (directory / f"seen-{jax.process_index()}.json").write_text(json.dumps(seen))


def start(
    out: Path, combinations: list[list[str]], layout: tuple[int, int], steps: int = STEPS
) -> list[subprocess.Popen]:
    """The processes of one layout, for all combinations one after the other."""
    processes, devices = layout
    address = free_address()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.hosts", "--work", json.dumps(
                [str(out), combinations, layout, steps, [address, processes, index]]
            )],
            env=environment(devices), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index in range(processes)
    ]  # fmt: skip


def prepare(out: Path) -> None:
    """Make what the processes of all layouts read: the dataset, weights, and a file to start from."""
    from inti_jax.data.builders.motion_digits import MotionDigits
    from inti_jax.data.dataset import open_dataset
    from inti_jax.distributed import sharding
    from inti_jax.runs import trained, trained_file
    from inti_jax.runs.backbone import find_backbone
    from inti_jax.runs.record import Dataset, RunRecord
    from tests.pretrained.weights import write_tiny

    MotionDigits(data_dir=out / "data", movements={"train": 20, "val": 10}).build()
    write_tiny(out / "clip.safetensors", image=SHALLOW)
    # What the runs of one method start from, as another run left it.
    with mock.patch.dict(BACKBONES, tiny=SHALLOW):
        settings = run_settings(out, "zero_i2v", train__seed=7)
        dataset = open_dataset("motion_digits", out / "data", "train")
        record = RunRecord(settings, Dataset.of(dataset), find_backbone(settings))
        params = trained.start(record, sharding.make_mesh(settings.mesh)).params
        trained_file.write(out / "zero_i2v.safetensors", record, params)


def losses(directory: Path) -> list[float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [r["loss"] for r in map(json.loads, lines) if r["split"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.hosts")
    parser.add_argument("--work", help="what one process does, as JSON")
    parser.add_argument("--all", action="store_true", help="run and compare every combination")
    arguments = parser.parse_args()
    if arguments.work:
        out, combinations, layout, steps, flags = json.loads(arguments.work)
        work(Path(out), combinations, tuple(layout), steps, tuple(flags))
        return
    if not arguments.all:
        parser.error("give --all")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
        prepare(out)
        combinations = [[method, mesh] for method in METHODS for mesh in MESHES]
        for layout in LAYOUTS:
            for process in start(out, combinations, layout):
                _, errors = process.communicate()
                if process.returncode:
                    sys.exit(errors)
        for method, mesh in combinations:
            pair, one, single = (losses(run_directory(out, method, mesh, layout)) for layout in LAYOUTS)
            apart = [max(abs(a - b) for a, b in zip(pair, other, strict=True)) for other in (one, single)]
            print(
                f"{method:<10}  {mesh:<22}  loss {pair[0]:.4f} to {pair[-1]:.4f}; largest difference "
                f"{apart[0]:.1e} to one process of 8 devices, {apart[1]:.1e} to one device",
                flush=True,
            )


if __name__ == "__main__":
    main()
