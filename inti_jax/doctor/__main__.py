"""Try each layer of a run on this machine: `python -m inti_jax.doctor [--config configs/X.py]`."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from inti_jax import cli, config
from inti_jax.doctor import checkup
from inti_jax.doctor.checkup import Layer
from inti_jax.errors import UsageError
from inti_jax.host.command import run_command
from inti_jax.host.paths import run_path


def main(prog: str = "python -m inti_jax.doctor") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Tries each layer of a run: packages, decoder, the processes, devices, the host's cores "
        "and open files, mesh, weights, dataset, one compilation, one step, saving and restoring. Prints "
        "the time of each layer, and a remedy for each failure. A failed layer skips only the layers "
        "that need it. Exit status 0 if every layer works, else 1.",
        epilog="example: %(prog)s --config k400_vit_b16:method=aim --workdir runs/k400",
    )
    cli.add_config_argument(parser, "config of the run to try (default: a tiny one on rendered videos)")
    parser.add_argument(
        "--workdir",
        type=run_path,
        metavar="DIR",
        help="intended directory of the run: the doctor writes a checkpoint below it and deletes it "
        "(default: a temporary directory)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    cli.add_process_arguments(parser)
    arguments, overrides = cli.parse_with_overrides(parser)
    if arguments.config is None and overrides:
        raise UsageError(f"{overrides[0]} overrides a key of --config, so give --config too")
    settings = None if arguments.config is None else config.load_config(arguments.config, overrides)
    cli.setup_logging()

    flags = (arguments.coordinator_address, arguments.process_count, arguments.process_id)
    with _stdout_to_stderr(), tempfile.TemporaryDirectory(prefix="inti-jax-doctor-") as temporary:
        found = checkup.examine(settings, arguments.workdir, Path(temporary), flags)
    layers = found.layers
    well = all(layer.status == "ok" for layer in layers)
    if found.process_index == 0:
        if arguments.json:
            print(json.dumps({"ok": well, "layers": [dataclasses.asdict(each) for each in layers]}, indent=2))
        else:
            print(_render(layers))
    if not well:
        raise SystemExit(1)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send output of libraries from stdout to stderr: stdout is for the results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _render(layers: list[Layer]) -> str:
    name, status = (max(len(getattr(each, key)) for each in layers) for key in ("name", "status"))
    lines = []
    for each in layers:
        lines.append(f"{each.name:<{name}}  {each.status:<{status}}  {each.seconds:6.1f} s  {each.detail}")
        if each.remedy:
            lines.append(" " * (name + status + 14) + each.remedy)
    broken = sum(each.status != "ok" for each in layers)
    return "\n".join(
        [*lines, "", f"{broken} of {len(layers)} layers fail" if broken else "every layer works"]
    )


if __name__ == "__main__":
    run_command(main)
