"""Measure the speed of loading training clips: `python -m inti_jax.bench --data_dir DIR --name NAME`."""

import argparse
import dataclasses
import json
import sys

from inti_jax import cli, config
from inti_jax.errors import UsageError
from inti_jax.host import stores
from inti_jax.host.command import run_command
from inti_jax.host.paths import local_path


def main(prog: str = "python -m inti_jax.bench") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measures the training clips of a prepared dataset that this host loads per second, the "
        "time of each stage, and the fastest data.workers and data.threads.",
        epilog="example: %(prog)s --data_dir data --name motion_digits --config quickstart",
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        type=_data_dir,
        metavar="DIR",
        help="directory of all prepared datasets, a path or a gs:// URL; it is measured from there and then, "
        "if --config sets data.cache_dir, from the copies in that",
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="the dataset")
    cli.add_config_argument(
        parser,
        "config that sets the clips and the batch size (default: 8 frames at stride 16, cropped to 224, "
        "batches of 32)",
    )
    parser.add_argument(
        "--clips", type=int, default=128, metavar="N", help="clips in each measurement (default 128)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments, overrides = cli.parse_with_overrides(parser)
    if arguments.clips < 1:
        raise UsageError(f"--clips is {arguments.clips}: it should be at least 1")
    if arguments.config is None:
        if overrides:
            raise UsageError(f"{overrides[0]} overrides a key of --config, so give --config too")
        data, batch = config.Data(stride=16), config.Train().global_batch
    else:
        settings = config.load_config(arguments.config, overrides)
        data, batch = settings.data, settings.train.global_batch
    data = dataclasses.replace(data, name=arguments.name, data_dir=arguments.data_dir)
    cli.setup_logging()

    # Imported late: --help and a wrong argument should not wait for JAX.
    from inti_jax.data import throughput
    from inti_jax.data.dataset import open_configured, open_dataset

    dataset = open_dataset(data.name, data.data_dir, "train")
    found = [throughput.measure(dataset, data, batch=batch, clips=arguments.clips)]
    dataset = open_configured(data, "train")
    if dataset.copying is not None:
        print("copying the dataset to data.cache_dir", file=sys.stderr)
        dataset.copying.join()
        found.append(throughput.measure(dataset, data, batch=batch, clips=arguments.clips))
    if arguments.json:
        first, *cached = map(throughput.to_json, found)
        print(json.dumps(first | {"cache": cached[0]} if cached else first, indent=2))
    else:
        print("\n".join(map(throughput.describe, found)))


def _data_dir(text: str) -> str:
    return stores.check(text) if stores.is_url(text) else str(local_path(text))


if __name__ == "__main__":
    run_command(main)
