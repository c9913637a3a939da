"""Convert, check and load pretrained weights of CLIP, SigLIP and DINOv2.

- `sources` reads checkpoints and the settings beside them; `pickled` and `inert` read torch's files without
  torch, `file_kinds` recognises files without weights, `lazy_array` has arrays that are read on demand.
- `clip_rules` has the rules between other libraries' names and layouts and ours, and `matching` applies them;
  `architecture` derives sizes and settings, `hf_settings` writes Hugging Face's; `unsupported` names the
  backbones that are not read.
- `clip_file` is the project's own file; `converted` makes and opens it.
- `peers` reads fine-tuned checkpoints of published methods, and names models that are not read.
- `loading` brings its weights into a model, `posemb` resamples its positions, `text_head` embeds class names.
- `api` is `inti_jax.load_clip`, and `encoders` has what it returns; `verify` compares a file with its source,
  which `reference` runs in torch.

The package may import config, distributed, errors, host and models, never runs or data.
"""
