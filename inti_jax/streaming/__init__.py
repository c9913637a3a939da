"""Run trained models on streams and on long videos.

`engine` has `inti_jax.stream`: a model on windows that slide over the frames that are pushed into it.
`sources` opens files, pipes, cameras and URLs, `pacing` takes the model's frames out of theirs, and `feed`
reads them beside the model. `timeline` merges answers into labels over time, `segment_files` and `picture`
write these, and `long_videos` is what `predict --timeline` does. `frame_arguments` has the arguments that
two commands share.

It imports evaluation and what is below it. Commands and `inti_jax.stream` import it.
"""
