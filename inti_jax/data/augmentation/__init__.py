"""Crop and augment the uint8 frames of a clip in NumPy, the same way for every frame.

`augment` applies the steps of a training clip in order and cuts the evaluation's crops. `crops`, `colour` and
`rand_augment` are the steps. `opposites` finds the labels of mirrored and reversed clips.

`data`, `training` and `evaluation` may import it. It imports `config` and `errors`, and nothing else of
`data`.
"""
