"""Turn encoded videos on disk into batches of uint8 clips.

`builders` prepare datasets, and `codec` decodes and encodes videos. `sampling` chooses the frames of a clip,
`augmentation` crops and augments them, `pipeline` orders the clips, and `loading` loads them as batches.

Commands, training and evaluation may import it. It imports `config`, `errors`, `host` and
`distributed.backend`, none of which imports it, and no other package.
"""
