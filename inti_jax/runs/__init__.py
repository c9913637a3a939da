"""Keep what belongs to one run: its directory, record, state, checkpoints, metrics and trained parameters.

- `layout` names the files of the directory and locks it; `record` is the run's config.json.
- `state` and `initial` define the training state and make the first one.
- `checkpoint` saves and restores, with `checksums` of the files.
- `writers` reports figures to files, services and the terminal; `evaluations` reads accuracies back.
- `monitor` checks and logs each step, with `utilization` (MFU).
- `compilation` caches and records compiled programs; `profiling` traces steps.
- `trained` and `trained_file` load what a run trained; `export` writes it for other libraries. `peer_file`
  makes such a file from a published method's checkpoint.

The packages `cost`, `evaluation` and `training` may import it, and so may the commands.
"""
