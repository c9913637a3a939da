"""Memory of a training step with a frozen backbone against full fine-tuning: XLA's own analysis.

    python -m tests.benchmarks.step_memory [--batch 1] [--methods full,st_adapter,lora] [--dtype bfloat16]

Compiles the step of a ViT-B/16 on 8 frames for one device and prints what the compiler plans: arguments (the
state and the batch), temporaries, and their sum, which is the peak.
"""

import argparse
import os

# Nothing is run. By default the CPU's order of operations is chosen for concurrency, and not for memory.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"

import jax
import jax.numpy as jnp
from flax import nnx

from inti_jax.config import Mesh
from inti_jax.distributed import sharding
from inti_jax.runs import state
from inti_jax.training import optim, train_step
from tests.configs import record, tiny


def peak_bytes(method: str, batch: int, **changes: object) -> dict[str, int]:
    """The compiler's plan for one step, in bytes."""
    settings = tiny(
        model__backbone="clip_vit_b16",
        model__pretrained="clip_vit_b16.safetensors",
        model__adaptation=method,
        data__resolution=224,
        train__global_batch=batch,
        **changes,
    )
    run = record(settings, classes=400)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    transform, schedule = optim.make_optimizer(settings.train, 10)
    target = state.abstract_state(run, transform, mesh)
    graphdef = nnx.graphdef(state.abstract_model(run))
    step = train_step.compile_step(settings, graphdef, transform, schedule, target, mesh)
    rows = {
        "video": ((batch, 8, 224, 224, 3), jnp.uint8),
        "label": ((batch,), jnp.int32),
        "mask": ((batch,), jnp.bool_),
        "index": ((batch,), jnp.int32),
    }
    where = sharding.batch_sharding(mesh)
    shapes = {name: jax.ShapeDtypeStruct(*spec, sharding=where) for name, spec in rows.items()}
    plan = step.lower(target, shapes).compile().memory_analysis()
    arguments, temporaries = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    return {"arguments": arguments, "temporaries": temporaries, "peak": arguments + temporaries}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--methods", default="full,st_adapter")
    parser.add_argument(
        "--dtype", default="float32", help="of the computation, and of the parameters that do not train"
    )
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    dtypes = {"train__dtype": arguments.dtype, "model__frozen_dtype": arguments.dtype}
    plans = {method: peak_bytes(method, arguments.batch, **dtypes) for method in methods}
    print("| method | arguments, GiB | temporaries, GiB | peak, GiB | of the first |\n|---|---|---|---|---|")
    for method, plan in plans.items():
        figures = " | ".join(f"{plan[part] / 2**30:.2f}" for part in ("arguments", "temporaries", "peak"))
        print(f"| {method} | {figures} | {plan['peak'] / plans[methods[0]]['peak']:.2f} |")


if __name__ == "__main__":
    main()
