"""Compute the cost of a config before it runs: multiply-accumulates, parameters, memory, and compiled steps.

`plan` tabulates the cost of each block, with `activations` for the memory of training and `budget` for the
schedules that fit a budget. `topology` compiles the training step for devices that may be elsewhere, and
`hlo` reads the compiled program.

It imports models, runs and distributed, and what is below them. Only the command `inti_jax.plan` imports it.
"""
