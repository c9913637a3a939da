"""Crop and augment the uint8 frames of a clip in NumPy, the same way for every frame.

`augment` applies the steps of a training clip in order and cuts the evaluation's crops. `crops`, `colour` and
`rand_augment` are the steps. `mirror` finds the label of a mirrored video.

`data`, `training` and `evaluation` may import it. It imports `config` and `errors`, and nothing else of
`data`.
"""
