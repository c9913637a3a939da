"""Decode, check and encode videos with FFmpeg, by way of PyAV.

`decode` turns a file's bytes into RGB frames and validates whole videos, `encode` and `reencode` write H.264.
`packets`, `damage` and `orientation` are parts of decoding: the packets that a clip depends on, damaged and
missing frames, and the display matrix. Any module may import this package. It imports `inti_jax.errors` and
nothing else of `inti_jax`.
"""
