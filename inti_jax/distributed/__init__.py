"""Run several processes as one: join them, check that they agree, watch them, and shard over their devices.

`joining` connects the processes, over `relay`, and `coordination` gives access to the service through which
they talk. `agreement` checks that all are about to compute the same thing. `liveness` ends the run when a
process is lost or stalled. `preemption` stops all processes at the same step. `backend` starts JAX.
`sharding` makes the device mesh and places parameters and batches on it.

It imports config and host alone, besides errors. Any package above those may import it.
"""
