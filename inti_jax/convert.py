"""Convert weights and trained models, from others and to others: `python -m inti_jax.convert SRC --out F`."""

import argparse
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inti_jax import cli
from inti_jax.errors import UsageError, UserError
from inti_jax.host.command import run_command
from inti_jax.host.paths import input_path, output_path
from inti_jax.host.stores import shown
from inti_jax.hub import names
from inti_jax.hub.names import HubName, Place

if TYPE_CHECKING:
    from inti_jax.pretrained.clip_file import Description
    from inti_jax.pretrained.lazy_array import LazyArray
    from inti_jax.pretrained.peers.methods import Found

# Share of a stage's norm. Two float32 implementations of CLIP differ by a hundredth of it. A wrong
# activation, epsilon or layout makes them differ by far more.
_TOLERANCE = 1e-4

_LIBRARIES = {
    "openai": "OpenAI's library does",
    "huggingface": "transformers does",
    "siglip": "SigLIP's training does",
    "siglip2": "SigLIP 2's training does",
}

# The targets of --to that hold the model itself, and not only its weights.
_PROGRAMS = ("stablehlo", "onnx", "savedmodel")

_NO_SAVEDMODEL = (
    "--to savedmodel is not written: no release of TensorFlow is young enough to be sure to run what this "
    "JAX exports, see docs/export.md; use --to onnx or stablehlo"
)

# The arguments that go with a checkpoint of a published method alone.
_PEER_ARGUMENTS = ("labels", "pretrained", "frames", "sampling", "scale", "shifts")

_EXAMPLES = """examples:
  %(prog)s ViT-B-16.pt --out b16.safetensors --vocab bpe_simple_vocab_16e6.txt.gz
  %(prog)s clip-vit-base-patch16/ --out b16.safetensors
  %(prog)s openai/clip-vit-base-patch16 --out b16.safetensors   # from the Hugging Face Hub
  %(prog)s ViT-B-16-SigLIP/webli --out siglip.safetensors       # open_clip's name for it
  %(prog)s last.ckpt --out b16.safetensors --activation gelu   # a training checkpoint
  %(prog)s --verify b16.safetensors --against clip-vit-base-patch16/
  %(prog)s b16.safetensors --to huggingface --out my-clip/
  %(prog)s runs/mine --to openai --out tower.safetensors
  %(prog)s runs/mine --out tower.safetensors        # to start another run from
  %(prog)s runs/mine --to trained --out mine.safetensors
  %(prog)s runs/mine --to hub --out mine/           # to share it
  %(prog)s runs/mine --to stablehlo --out mine.zip  # to run it with JAX alone
  %(prog)s runs/mine --to onnx --out mine.onnx      # to run it without JAX
  %(prog)s aim.pth --out aim.safetensors --labels k400.txt --scale 0.5 --sampling dense:4
"""


def main(prog: str = "python -m inti_jax.convert") -> None:
    """Run the command, which usage texts call `prog`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Converts weights of CLIP (OpenAI's, open_clip's or Hugging Face's), SigLIP "
        "(open_clip's, timm's or Hugging Face's) and DINOv2 (Meta's or Hugging Face's), a .pt, .bin or "
        ".safetensors file or a directory, to this project's file or back, or verifies a converted file "
        "against its source.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="?",
        type=names.place,
        metavar="SRC",
        help="weights to convert: a file or directory, also a training checkpoint with the weights under "
        "`model`, `state_dict` or any prefix; or their name on the Hugging Face Hub: org/name, "
        "hf://org/name[@REVISION][/FILE], or open_clip's MODEL/WEIGHTS; or a run's directory, to convert the "
        "image tower that it trained; or a fine-tuned AIM, ST-Adapter or ZeroI2V",
    )
    parser.add_argument(
        "--out",
        type=output_path,
        metavar="F",
        help="file to write; with --to huggingface or hub, a directory",
    )
    parser.add_argument(
        "--to",
        choices=("openai", "huggingface", "trained", "hub", *_PROGRAMS),
        help="openai, huggingface: export SRC under these names, where SRC is a converted file or a run's "
        "directory. A run gives its image tower, and the projection if its classifier started from "
        "class names. trained: write only the parameters that a run trained, to use with the CLIP that "
        "it started from. hub: write a directory to upload to the Hugging Face Hub, with what the run "
        "trained, its config, labels, evaluations and a model card. stablehlo, onnx: write the model itself, "
        "from uint8 pixels to logits, for JAX without this package, or for ONNX Runtime and others; SRC is a "
        "run, what `--to trained` or `--to hub` wrote, or a CLIP, whose image tower is written. See "
        "docs/export.md",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="with --to stablehlo or onnx: write the features alone: what a video's classifier takes, or "
        "what a CLIP has before its projection",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="with --to onnx: type of the weights and the computation (float32)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="with --to hub: write all parameters, so that no other weights are needed",
    )
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="activation, if the weights do not state it: quick_gelu for OpenAI's, gelu for most others",
    )
    parser.add_argument(
        "--head_size",
        type=int,
        metavar="N",
        help="width of an attention head, if the weights do not state it (64)",
    )
    parser.add_argument(
        "--vocab",
        type=input_path,
        metavar="FILE",
        help="vocabulary of the text tower: bpe_simple_vocab_16e6.txt.gz, tokenizer.json, vocab.json, or a "
        "directory with one of them (default: the one beside SRC, if any)",
    )
    _add_peer_arguments(parser)
    cli.add_step_argument(parser)
    cli.add_weights_argument(parser)
    parser.add_argument(
        "--verify", type=input_path, metavar="F", help="converted file to compare with --against"
    )
    parser.add_argument(
        "--against", type=names.place, metavar="SRC", help="checkpoint that --verify F was converted from"
    )
    arguments = parser.parse_args()
    cli.setup_logging()

    if (arguments.verify is None) != (arguments.against is None):
        raise UsageError("--verify F and --against SRC go together")
    if arguments.verify is not None:
        others = ("source", "out", "to", "activation", "head_size", "vocab", "step", "weights")
        if any(getattr(arguments, name) is not None for name in (*others, *_PEER_ARGUMENTS)):
            raise UsageError("--verify takes only --against SRC: the file states the rest")
        _verify(arguments.verify, arguments.against)
        return
    if arguments.source is None or arguments.out is None:
        raise UsageError("give the weights to convert and the file to write: SRC --out F; see --help")
    if arguments.head_size is not None and arguments.head_size < 1:
        raise UsageError(f"--head_size is {arguments.head_size}: it should be at least 1")
    if not arguments.out.absolute().parent.is_dir():
        raise UsageError(f"--out {arguments.out}: there is no directory {arguments.out.absolute().parent}")
    on_hub = isinstance(arguments.source, HubName)
    for name in ("step", "weights"):
        if getattr(arguments, name) is not None and (on_hub or not arguments.source.is_dir()):
            raise UsageError(f"--{name} needs the directory of a run, and {arguments.source} is not one")
    if arguments.all and arguments.to != "hub":
        raise UsageError("--all goes with --to hub")
    if arguments.features and arguments.to not in _PROGRAMS:
        raise UsageError("--features goes with --to stablehlo or onnx")
    if arguments.dtype is not None and arguments.to != "onnx":
        raise UsageError("--dtype goes with --to onnx")
    if arguments.to == "savedmodel":
        raise UsageError(_NO_SAVEDMODEL)
    if arguments.to is not None:
        if arguments.activation or arguments.head_size or arguments.vocab or _peer_arguments(arguments):
            raise UsageError("--to takes only SRC and --out: the file states the rest")
        (_write_program if arguments.to in _PROGRAMS else _give_back)(arguments)
    else:
        _convert(arguments)


def _convert(arguments: argparse.Namespace) -> None:
    # Imported late, here and below: --help and a wrong argument should not wait for JAX.
    from inti_jax.pretrained import converted, sources
    from inti_jax.pretrained.peers import methods
    from inti_jax.pretrained.sources import is_run

    start = time.monotonic()
    if arguments.out.suffix != ".safetensors" or arguments.out.is_dir():
        raise UsageError(f"--out {arguments.out}: the file's name should end in .safetensors")
    arguments.named, arguments.source = _here(arguments.source)
    if is_run(arguments.source):
        _convert_run(arguments, start)
        return
    if arguments.out.exists() and arguments.source.exists() and arguments.out.samefile(arguments.source):
        raise UsageError(f"--out {arguments.out} is SRC itself")
    if arguments.source.exists():
        found = methods.find(sources.read(arguments.source))
        if found is not None:
            _convert_peer(found, arguments, start)
            return
    if given := _peer_arguments(arguments):
        raise UsageError(
            f"--{given[0]} is for a fine-tuned AIM, ST-Adapter or ZeroI2V, and {arguments.source} is none"
        )
    done = converted.convert(
        arguments.source,
        arguments.out,
        activation=arguments.activation,
        head_size=arguments.head_size,
        vocabulary=arguments.vocab,
    )

    matched = done.matched
    mapped = sum(len(parts) for parts in matched.parts.values())
    print(f"source      {arguments.named}: {matched.naming.name} naming, {mapped} keys mapped")
    print(f"dropped     {', '.join(sorted((*matched.dropped, *matched.beside))) or 'nothing'}")
    _print_description(done.description)
    _print_written(arguments.out, done.arrays, done.hash, start)


def _here(place: Place) -> tuple[Place, Path]:
    """Return the name of weights, with the commit where they are on the Hub, and their path here."""
    if isinstance(place, Path):
        return place, place
    from inti_jax.hub.repository import pin
    from inti_jax.pretrained import from_hub

    named = pin(place)
    return named, from_hub.fetch(named)


def _convert_run(arguments: argparse.Namespace, start: float) -> None:
    from inti_jax.pretrained import clip_file
    from inti_jax.runs import export

    if arguments.activation or arguments.head_size or arguments.vocab or _peer_arguments(arguments):
        raise UsageError(f"{arguments.source} is a run: it takes only --out, since the run states the rest")
    arrays, description, left = export.read_run(arguments.source, arguments.step, arguments.weights)
    digest = clip_file.write(arguments.out, arrays, description)
    print(f"left out    {', '.join(left)}")
    _print_description(description)
    _print_written(arguments.out, arrays, digest, start)


def _add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "fine-tuned checkpoints of AIM, ST-Adapter and ZeroI2V",
        "What their tensors do not tell. If one that is needed is left out, the error lists its published\n"
        "values. The file is for --checkpoint, inti_jax.load and `model.start_from`. With AIM and ZeroI2V\n"
        "it holds the backbone, and is `model.pretrained` as well.",
    )
    group.add_argument(
        "--labels", type=input_path, metavar="FILE", help="a text file with the name of a class in each line"
    )
    group.add_argument(
        "--pretrained", type=input_path, metavar="F", help="ST-Adapter: the converted CLIP that it goes on"
    )
    group.add_argument("--frames", type=int, metavar="T", help="ST-Adapter: frames of a clip")
    group.add_argument(
        "--sampling", metavar="uniform|dense:STRIDE", help="how clips are cut: `data.sampling`, `data.stride`"
    )
    group.add_argument(
        "--scale", type=float, metavar="S", help="AIM, ZeroI2V: `model.aim.scale` or `model.zero_i2v.scale`"
    )
    group.add_argument(
        "--shifts", metavar="PAIRS", help='ZeroI2V: `model.zero_i2v.shifts`, such as "((-1,1),(1,1))"'
    )


def _peer_arguments(arguments: argparse.Namespace) -> list[str]:
    """List the arguments of `_add_peer_arguments` that were given."""
    return [name for name in _PEER_ARGUMENTS if getattr(arguments, name) is not None]


def _convert_peer(found: "Found", arguments: argparse.Namespace, start: float) -> None:
    from inti_jax.config.backbones import called
    from inti_jax.runs import peer_file

    matched, title = found.matched, found.method.title
    if arguments.activation or arguments.head_size or arguments.vocab:
        raise UsageError(
            f"{arguments.source} is a fine-tuned {title}: leave out --activation, --head_size and --vocab"
        )
    if arguments.labels is None:
        raise UsageError(
            f"{arguments.source} is a fine-tuned {title} with {found.classes} classes: give their names with "
            "--labels FILE, one in each line"
        )
    given = peer_file.Given(arguments.frames, arguments.sampling, arguments.scale, arguments.shifts)
    done = peer_file.convert(found, arguments.out, arguments.labels, given, arguments.pretrained)
    settings = done.record.config
    section = dataclasses.asdict(getattr(settings.model, settings.model.adaptation))
    data, views = settings.data, settings.eval
    print(f"source      {arguments.named}: a fine-tuned {title}, {len(matched.parts)} keys mapped")
    print(f"dropped     {', '.join(sorted((*matched.dropped, *matched.beside))) or 'nothing'}")
    print(f"method      {settings.model.adaptation}, {', '.join(f'{k} {v}' for k, v in section.items())}")
    print(
        f"clips       {data.num_frames} frames, {data.sampling}"
        + (f" with stride {data.stride}" if data.sampling == "dense" else "")
        + f"; in evaluation {views.clips} clips x {views.crops} crops"
    )
    print(f"labels      {len(done.record.dataset.labels)}, from {arguments.labels}")
    backbone = called(settings.model.backbone, done.record.backbone.size)
    print(f"goes on     {backbone}, {arguments.pretrained or 'in the same file'}")
    _print_written(arguments.out, done.arrays, done.hash, start)


def _give_back(arguments: argparse.Namespace) -> None:
    from inti_jax.pretrained.clip_file import ClipFile
    from inti_jax.runs import export

    start = time.monotonic()
    arguments.named, arguments.source = _here(arguments.source)
    source, out, naming = arguments.source, arguments.out, arguments.to
    if naming == "trained":
        _give_trained(arguments, start)
        return
    if naming == "hub":
        _share(arguments, start)
        return
    if source.is_dir():
        arrays, description, left = export.read_run(source, arguments.step, arguments.weights)
        print(f"left out    {', '.join(left)}")
        written = export.export(arrays, description, naming, out)
    else:
        file = ClipFile(source)
        description = file.description
        written = export.export(file, description, naming, out)
    _print_description(description)
    print(
        f"wrote       {shown(str(out))}: {naming} naming, {written} keys, in {time.monotonic() - start:.1f} s"
    )


def _give_trained(arguments: argparse.Namespace, start: float) -> None:
    from inti_jax.distributed import sharding
    from inti_jax.runs import trained, trained_file

    out = arguments.out
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: the file's name should end in .safetensors")
    found = trained.load(
        arguments.source, sharding.one_device_mesh(), step=arguments.step, weights=arguments.weights
    )
    digest = trained_file.write(out, found.record, found.params, found.weights)
    print(f"trained     {found.record.config.model.adaptation}, {len(found.record.dataset.labels)} labels")
    print(f"backbone    {found.record.backbone.sha256 or 'random weights'}")
    print(f"hash        {digest}")
    _print_file(out, start)


def _share(arguments: argparse.Namespace, start: float) -> None:
    from inti_jax.reports import sharing
    from inti_jax.runs import trained_file

    out, whole = arguments.out, arguments.all
    done = sharing.write(arguments.source, out, step=arguments.step, weights=arguments.weights, whole=whole)
    size = (out / trained_file.SHARED).stat().st_size
    print(f"parameters  {'all' if done.whole else 'what trained'}, of step {done.step}")
    print(f"hash        {done.hash}")
    print(
        f"wrote       {shown(str(out))} ({size / 1e6:.1f} MB of weights) in {time.monotonic() - start:.1f} s"
    )
    print(f"next        complete {out / 'README.md'}, then: hf upload ORGANISATION/{out.name} {out}")


def _write_program(arguments: argparse.Namespace) -> None:
    from inti_jax.export import onnx_file, portable, stablehlo_file

    start, out, onnx = time.monotonic(), arguments.out, arguments.to == "onnx"
    suffix = onnx_file.SUFFIX if onnx else stablehlo_file.SUFFIX
    if out.suffix != suffix or out.is_dir():
        raise UsageError(f"--out {out}: the file's name should end in {suffix}")

    model = portable.read(
        arguments.source,
        features=arguments.features,
        dtype="float32" if onnx else None,
        step=arguments.step,
        weights=arguments.weights,
    )
    if onnx:
        written = onnx_file.write(out, model, arguments.dtype or "float32")
    else:
        written = stablehlo_file.write(out, model)
    print(f"input       {_shown_array(written.metadata['input'])}")
    print(f"output      {_shown_array(written.metadata['output'])}")
    print(f"computes    in {written.metadata['model']['dtype']}")
    print(f"checked     differs from the model by {written.difference:.1e} of its largest output")
    _print_file(out, start)


def _shown_array(facts: Mapping[str, Any]) -> str:
    frames = facts.get("frames")
    multiple = f", frames a multiple of {frames['multiple_of']}" if frames else ""
    return f"{facts['name']}, {facts['dtype']} [{', '.join(map(str, facts['shape']))}]{multiple}"


def _verify(path: Path, source: Place) -> None:
    from inti_jax.pretrained import verify

    named, against = _here(source)
    differences = verify.compare(path, against)
    print(f"{'stage':<18}{'largest':>12}{'relative':>12}")
    for found in differences:
        print(f"{found.stage:<18}{found.largest:>12.2e}{found.relative:>12.2e}")
    # `not <=` also finds a difference that is NaN.
    wrong = [found.stage for found in differences if not found.relative <= _TOLERANCE]
    if wrong:
        raise UserError(
            f"{path} differs from {named}, first at stage {wrong[0]}: do not use it; convert the source again"
        )


def _print_written(out: Path, arrays: "Mapping[str, LazyArray]", digest: str, start: float) -> None:
    print(f"parameters  {_counts({name: array.shape for name, array in arrays.items()})}")
    print(f"hash        {digest}")
    _print_file(out, start)


def _print_file(out: Path, start: float) -> None:
    print(
        f"wrote       {shown(str(out))} ({out.stat().st_size / 1e6:.1f} MB) "
        f"in {time.monotonic() - start:.1f} s"
    )


def _print_description(description: "Description") -> None:
    found = description.architecture
    image, text = found.image, found.text
    print(
        f"image       width {image.width}, {image.layers} layers, {image.heads} heads, patch {image.patch}, "
        f"resolution {image.resolution}"
    )
    if text is not None:
        vocabulary = "no vocabulary: see --vocab"
        if description.vocabulary is not None:
            vocabulary = f"with its vocabulary, texts cleaned as {_LIBRARIES[description.cleaning]}"
        print(
            f"text        width {text.width}, {text.layers} layers, {text.heads} heads, "
            f"{text.vocabulary} tokens, context {text.context}, {vocabulary}"
        )
    print(f"features    {'the tower' if found.embed is None else found.embed}")
    print(f"numerics    {found.numerics.activation}, LayerNorm epsilon {found.numerics.eps:g}")


def _counts(shapes: dict[str, tuple[int, ...]]) -> str:
    total = sum(math.prod(shape) for shape in shapes.values())
    image = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("tower."))
    return f"{total:,}, of which {image:,} in the image tower"


if __name__ == "__main__":
    run_command(main)
