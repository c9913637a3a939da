"""Build prepared datasets from sources of videos.

`video` has the base class of all builders, `journal` the state of an unfinished build. `folder` builds from
users' files (`classes`, `table`, `splits`), and `locate` finds the videos that a published dataset's
annotations list (`kinetics`, `ssv2`, `ucf101`, `hmdb51`, `diving48`, `lists`; `registry` has them by name);
`egogestar` lists its videos itself.
`motion_digits` and `still_digits` render their videos. The other modules read directories, file names and
folders of images.

`inti_jax.prepare` is the main user. Other modules may import from here too, to read sources or to build the
embedded datasets. Import the builders themselves late: TFDS is slow to load. This package imports `errors`,
`host`, and `codec`, `manifest` and `parallel` of `inti_jax.data`.
"""
