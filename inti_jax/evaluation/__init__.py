"""Evaluate trained models on datasets and on video files, and report the results.

`evaluate` computes the accuracies of a run over a dataset, with `metrics`. `inference` runs a model on video
files. `classifier` loads a model as a function from arrays to logits. `report` writes the page that compares
runs.

It imports runs, models, data and distributed, and what is below them. Training, the commands and
`inti_jax.load` import it.
"""
