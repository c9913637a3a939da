"""Train a model: the loop, its step, and the experiments that run it.

- `loop` trains a run from its start or its newest checkpoint; `announce` logs its figures first, and
  `early_stop` may end it.
- `train_step` computes one update, with a loss of `losses`, `mixing` (mixup and CutMix), `optim` and `ema`.
- `ablation` trains many small runs and tabulates them.

Only the commands may import it.
"""
