"""Parse the arguments of `python -m inti_jax.prepare`, and check that they go together."""

import argparse
import difflib
import os
from fractions import Fraction
from pathlib import Path

from inti_jax.data import dataset, manifest, remote
from inti_jax.data.builders import registry
from inti_jax.data.builders.frames import USUAL_RATE
from inti_jax.data.codec.decode import MOST_DOUBTFUL
from inti_jax.errors import UserError
from inti_jax.host import stores
from inti_jax.host.names import printable
from inti_jax.host.paths import local_path, output_path

_EPILOG = f"""\
datasets:
{registry.describe()}

The --source of a published dataset holds its annotations and videos: docs/data.md shows the layouts. With
--train_list and --val_list, any dataset can be read from lists of paths and label numbers instead.
A folder of numbered images (img_00001.jpg, ...) counts as a video: it is encoded at --fps frames a second.
The dataset's manifest.json lists each rejected video with the reason.

examples:
  %(prog)s motion_digits --data_dir data
  %(prog)s folder --source my_videos --data_dir data --name my_dataset
  %(prog)s folder --source my_videos.csv --labels labels.txt --data_dir data
  %(prog)s ucf101 --source ucf --fold 2 --name ucf101_fold2 --data_dir data
  %(prog)s ssv2 --source videos --train_list train.txt --val_list val.txt \\
    --labels labels.txt --data_dir data
  %(prog)s kinetics400 --source k400 --data_dir data --short_side 256
  %(prog)s folder --source jester --data_dir data --name jester --fps 12
  %(prog)s kinetics400 --source k400 --data_dir gs://my-bucket/data --short_side 256
  %(prog)s --check data/kinetics400/1.0.0
  %(prog)s --describe data/my_dataset/1.0.0
"""
_MOST_FPS = 1000
_LARGEST_DENOMINATOR = 65_535  # of a rate; well within what MP4 can store


def parse(prog: str) -> argparse.Namespace:
    """Parse the command line; on wrong usage, end the program with a one-line message and status 2.

    Usage texts call the command `prog`.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Decodes every video in full to check it, and writes the videos as a dataset.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", metavar="NAME", nargs="?", help=", ".join(registry.NAMES))
    parser.add_argument(
        "--data_dir",
        type=dataset.directory_to_write,
        help="directory of all prepared datasets, a path or a gs:// URL",
    )
    parser.add_argument("--source", type=local_path, help="directory of the videos, or a CSV file (folder)")
    parser.add_argument("--name", help="the dataset's name in data_dir (default: NAME)")
    parser.add_argument(
        "--labels",
        type=local_path,
        help="file with one label a line, which fixes their order (folder, lists)",
    )
    parser.add_argument(
        "--train_list", type=local_path, help="list with a path and a label number on each line"
    )
    parser.add_argument(
        "--val_list",
        type=local_path,
        help="the same for `val`; label numbers count the lines of --labels from 0",
    )
    parser.add_argument("--fold", type=int, help="number of the split (ucf101, hmdb51, egogestar; default 1)")
    parser.add_argument(
        "--val_share",
        type=float,
        help="share of each class that becomes `val` if the source has no splits (folder; default 0.2)",
    )
    parser.add_argument(
        "--fps",
        type=_rate,
        metavar="N",
        help="frame rate of frame folders, such as 12 or 30000/1001 (default 25)",
    )
    _add_general_options(parser)
    args = parser.parse_args()
    _check_general_options(parser, args)
    if args.check is not None or args.describe is not None:
        return args
    if args.dataset not in registry.NAMES:
        near = difflib.get_close_matches(args.dataset, registry.NAMES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it is one of {', '.join(registry.NAMES)}"
        parser.error(f"unknown dataset `{args.dataset}`; {hint}")
    if args.dataset in registry.EMBEDDED:
        for option in (
            "source",
            "name",
            "labels",
            "train_list",
            "val_list",
            "fold",
            "val_share",
            "fps",
            "short_side",
            "strict",
        ):
            if getattr(args, option) not in (None, False):
                parser.error(f"--{option} does not apply to {args.dataset}, which is rendered")
    else:
        _check_files_options(parser, args)
    return args


def _dataset(text: str) -> Path:
    """Convert an argument to a prepared dataset's directory: a version's, or data_dir/NAME for the newest.

    That of one in a bucket stands for its URL, with what describes it.
    """
    if stores.is_url(text):
        url = stores.check(text)
        parent, _, name = url.rpartition("/")
        if remote.VERSION.fullmatch(name):
            files = remote.versions(parent).get(name)
            found = remote.described(url, files) if files else None
        else:
            found = dataset.find_dataset(name, parent)
        if found is None:
            raise UserError(f"{url} is no prepared dataset: give that of a version, or data_dir/NAME")
        return found
    path = local_path(text)
    if (path / manifest.FILE_NAME).exists():
        return path
    return dataset.find_dataset(path.name, path.parent) or path


def _png(text: str) -> Path:
    path = output_path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text} should end in .png")
    return path


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text).limit_denominator(_LARGEST_DENOMINATOR)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= _MOST_FPS:
        raise argparse.ArgumentTypeError(
            f"{text} is not a frame rate: it should be above 0 and at most {_MOST_FPS}"
        )
    return rate


def _check_files_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the defaults of a dataset that is made from files; end the program if options are wrong."""
    folder, lists = args.dataset == "folder", args.train_list is not None or args.val_list is not None
    if args.source is None:
        what = "a directory of class folders or a CSV file" if folder else "a directory, see docs/data.md"
        parser.error(f"{args.dataset} needs --source, {what}")
    if lists and args.labels is None:
        parser.error("--train_list and --val_list need --labels, a file with one label a line")
    if args.labels is not None and not folder and not lists:
        parser.error(
            "--labels applies to folder and to lists only: other annotations fix the order of labels"
        )
    if args.val_share is not None and (lists or not folder):
        parser.error("--val_share applies to folder without lists only")
    folds = 1 if folder or lists else registry.OFFICIAL[args.dataset].folds
    if args.fold is not None and not (folds > 1 and 1 <= args.fold <= folds):
        parser.error(
            f"--fold {args.fold}: {f'it is 1 to {folds}' if folds > 1 else 'there are no folds here'}"
        )
    args.fold = args.fold or 1
    args.rate = args.fps or USUAL_RATE
    args.name = args.dataset if args.name is None else args.name
    args.val_share = 0.2 if args.val_share is None else args.val_share
    if args.name in registry.EMBEDDED:
        parser.error(f"--name {args.name} is taken by the dataset of that name")
    if not 0 <= args.val_share < 1:
        parser.error(f"--val_share {args.val_share} is not a share: it should be at least 0 and below 1")


def _add_general_options(parser: argparse.ArgumentParser) -> None:
    """Add the options common to all datasets of files, and those of checking and describing."""
    how = parser.add_argument_group("preparation")
    how.add_argument(
        "--short_side",
        type=int,
        metavar="N",
        help="re-encode every video as H.264 that decodes quickly, and scale a shorter side above N pixels "
        "to N",
    )
    how.add_argument(
        "--strict",
        action="store_true",
        help=f"reject a video with any doubtful frame (default: with more than {MOST_DOUBTFUL:.0%}% of them)",
    )
    how.add_argument(
        "--workers", type=int, metavar="N", help="number of threads (default: one for each core)"
    )
    how.add_argument(
        "--beam_runner", metavar="NAME", help="run on this Apache Beam runner instead of on threads"
    )
    how.add_argument(
        "--beam_options", metavar="K=V,...", help="options of the runner, such as region=europe-west4"
    )
    check = parser.add_argument_group("checking a prepared dataset, without NAME")
    check.add_argument(
        "--check",
        type=_dataset,
        metavar="DIR",
        help="compare all files in DIR, such as data/NAME/1.0.0, with the manifest",
    )
    check.add_argument("--decode", action="store_true", help="decode every video as well")
    describe = parser.add_argument_group("describing prepared datasets, without NAME")
    describe.add_argument(
        "--describe",
        type=_dataset,
        nargs="+",
        metavar="DIR",
        help="print and draw class counts, durations and sizes; list videos with the same bytes in several "
        "splits or datasets",
    )
    describe.add_argument(
        "--out", type=_png, metavar="FILE.png", help="where to draw the picture (default: DIR/describe.png)"
    )
    describe.add_argument("--json", action="store_true", help="print JSON, and draw only with --out")


def _check_general_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program if an option is wrong or options exclude each other."""
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers {args.workers}: it should be at least 1")
    for alone, others in (("check", ("decode", "workers")), ("describe", ("out", "json"))):
        if getattr(args, alone) is not None:
            given = {name for name, value in vars(args).items() if value not in (None, False)}
            if wrong := sorted(given - {alone, *others}):
                parser.error(f"--{alone} takes --{others[0]} and --{others[1]} only, not {wrong[0]}")
            return
    for option, alone in (("decode", "check"), ("out", "describe"), ("json", "describe")):
        if getattr(args, option):
            hint = ": preparing decodes every video anyway" if option == "decode" else ""
            parser.error(f"--{option} needs --{alone}{hint}")
    if args.dataset is None or args.data_dir is None:
        parser.error(
            "give NAME, the dataset to prepare, and --data_dir, the directory of all prepared datasets"
        )
    if args.data_dir != Path(os.fsencode(args.data_dir).decode(errors="replace")):
        parser.error(
            f"--data_dir {printable(str(args.data_dir))} is not UTF-8, so ArrayRecord cannot open it: "
            "choose another (--source may have any name)"
        )
    if args.short_side is not None and (args.short_side < 16 or args.short_side % 2):
        parser.error(f"--short_side {args.short_side}: it should be an even number of at least 16 pixels")
    if args.beam_runner is None and args.beam_options is not None:
        parser.error("--beam_options needs --beam_runner")
    if args.beam_runner is not None and args.workers is not None:
        parser.error("--workers does not apply to Apache Beam: set the runner's own number in --beam_options")
    if args.beam_runner is not None and (url := stores.origin(args.data_dir)):
        parser.error(f"--beam_runner needs a --data_dir that all machines see as a path, not {url}")
