"""Report a run's figures: to files, to services and to the terminal.

- `protocol` is the interface of a writer. `metrics_writer` opens those that `train.writers` names; the loop
  writes to it alone.
- `jsonl` writes metrics.jsonl, which every run has, and reads it back. `tensorboard` and `wandb` are chosen.
- `progress` shows progress bars.

A further writer is a module here that implements the protocol, a line in `metrics_writer`, and its name in
`train.writers`. The package imports `config`, `errors` and `runs.layout`.
"""
