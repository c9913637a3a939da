"""What TPU's own compiler says of the recipes' training steps, on a host without a TPU.

    python -m tests.benchmarks.topology_benchmark [--rows none,inti] [--out runs/topology.json]

Each row is one `python -m inti_jax.plan --topology`, one after another; the file keeps what is done, so that
a second call does the rest and prints the table. All rows take about an hour on two cores. The seconds of a
row are in the file alone, since they say as much about the machine's other load.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

B16, L14 = "configs/k400_vit_b16.py", "configs/k400_vit_l14.py"
EIGHT = "model.scan=on mesh.data=-1 mesh.fsdp=8"
# Of each row: config with arguments, topology, videos over all devices (None: the recipe's own), overrides.
ROWS = {
    "none": (f"{B16}:compression=none", "v5e:4x4", 64, "model.scan=off"),
    "inti": (B16, "v5e:4x4", 64, "model.scan=off"),
    "none, loop": (f"{B16}:compression=none", "v5e:4x4", 64, "model.scan=on"),
    "inti, loop": (B16, "v5e:4x4", 64, "model.scan=on"),
    "st_adapter": (f"{B16}:method=st_adapter", "v5e:4x4", 64, "model.scan=on"),
    "8 chips": (B16, "v5e:2x4", 32, EIGHT),
    "256 chips": (B16, "v5e:16x16", 1024, EIGHT),
    "none, v5p": (f"{B16}:compression=none", "v5p:2x2x4", 64, "model.scan=on"),
    "inti, v5p": (B16, "v5p:2x2x4", 64, "model.scan=on"),
    "none, v6e": (f"{B16}:compression=none", "v6e:4x4", 64, "model.scan=on"),
    "inti, v6e": (B16, "v6e:4x4", 64, "model.scan=on"),
    "L/14, none, 256 chips": (f"{L14}:compression=none", "v5e:16x16", 1024, EIGHT),
    "L/14, inti, 256 chips": (L14, "v5e:16x16", 1024, EIGHT),
    "L/14, 32 frames": (f"{L14}:frames=32", "v5e:16x16", None, "model.scan=auto"),
}


def measure(config: str, topology: str, batch: int | None, overrides: str) -> dict:
    command = [sys.executable, "-m", "inti_jax.plan", "--config", config, "--topology", topology, "--json"]
    command += [f"--config.{override}" for override in overrides.split()]
    command += [f"--config.train.global_batch={batch}"] if batch else []
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout)["compile"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(name.replace(",", ";") for name in ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/topology.json"))
    arguments = parser.parse_args()
    done = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in [part.replace(";", ",") for part in arguments.rows.split(",")]:
        if name not in done:
            print(name, file=sys.stderr, flush=True)
            done[name] = measure(*ROWS[name])
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(done, indent=2))
    print(
        "| row | chips | TFLOP | GB accessed | in HBM | peak, GiB | reduced, MB | gathered, MB |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in ROWS:
        if name in done:
            print(f"| {name} | {' | '.join(cells(done[name]))} |")


def cells(found: dict) -> list[str]:
    if found["flops_per_device"] is None:
        return [str(found["devices"]), "", "", "", f"{found['peak_hbm_gib']}: does not fit", "", ""]
    moved = {one["kind"]: one["bytes"] / 1e6 for one in found["collectives"]}
    reduced = moved.get("all-reduce", 0) + moved.get("reduce-scatter", 0)
    return [
        str(found["devices"]),
        f"{found['flops_per_device'] / 1e12:.3f}",
        f"{found['bytes_per_device'] / 1e9:.2f}",
        f"{found['hbm_bytes_per_device'] / 1e9:.2f}",
        f"{found['peak_hbm_gib']:.2f}" + ("" if found["fits"] else ": does not fit"),
        f"{reduced:.1f}",
        f"{moved.get('all-gather', 0):.1f}",
    ]


if __name__ == "__main__":
    main()
