"""Load rows as batches, on threads or in worker processes, and place the batches on devices.

`rows` defines a row and the order of loading. `batches` makes batches of rows. `workers` and `processes` run
one pool of worker processes, which share memory through `shared`. `device` prefetches batches onto devices.

`data`, `training`, `evaluation`, `runs` and `doctor` may import it. It imports `config`, `errors` and `host`,
and nothing else of `data`: how a row is loaded is the caller's function.
"""
