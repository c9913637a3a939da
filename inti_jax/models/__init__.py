"""Define the models: CLIP's towers and tokenizer, the video model and the layers that it adds to CLIP.

The package also selects the parameters that train, and folds linear adapters into the backbone. It imports
`config`, `errors` and `distributed.sharding` only. `pretrained`, `runs`, `training`, `evaluation`, `cost` and
the commands may import it.
"""
