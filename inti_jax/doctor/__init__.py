"""Try each layer of a run on this machine, for the command `python -m inti_jax.doctor`.

`checkup` tries the layers; `__main__` prints the results. It may import any package, and none may import it.
"""
