"""Run the command `python -m inti_jax.prepare`, which prepares, checks and describes datasets.

`arguments` reads and checks the command line, `__main__` calls the builders in `inti_jax.data.builders`. This
is a command, so no other module of `inti_jax` imports it.
"""
