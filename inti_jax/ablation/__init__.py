"""Train tables of adaptation methods x compressors x folds x seeds, and compare their cells pair by pair.

`experiments` defines the tables. `cells` trains and evaluates their cells, and keeps the predictions of each.
`tables` formats them. The command is `inti_jax/ablate.py`; nothing else imports this package.
"""
