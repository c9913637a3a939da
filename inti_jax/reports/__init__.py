"""Make the pages of runs: what one learned and where it fails, and how several compare.

What a page says is gathered first, as plain data: `runs` reads a run's directory, `curves` its records,
`confusions` and `clips` its predictions, `costs` and `settings` its config. `charts` draws, and `writing`
puts all into the templates of `inti_jax.pages`. `explanation_page` shows one model on single videos.
"""
