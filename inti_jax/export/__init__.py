"""Write models as files that other programs run, without this package, its config or its checkpoints.

`portable.py` makes of a trained model, or of a CLIP's image tower, a function of weights and uint8 pixels,
with what its users have to know as metadata. `stablehlo_file.py` writes it for JAX, `onnx_file.py` for ONNX
Runtime. `check.py` compares what was written with the model.

Imported by `inti_jax.convert` alone. It reads models through `runs` and `pretrained`, and knows nothing of
datasets, evaluation and training.
"""
