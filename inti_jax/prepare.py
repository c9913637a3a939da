"""`python -m inti_jax.prepare NAME`: a source of videos becomes a dataset to train and evaluate on."""

import argparse
import difflib
import signal
from pathlib import Path
from typing import Any, NoReturn

from inti_jax.data import dataset, manifest
from inti_jax.errors import UserError, run_command

EMBEDDED = ("motion_digits", "still_digits")
NAMES = (*EMBEDDED, "folder")

_EXAMPLES = """\
datasets:
  motion_digits   rendered, needs no source: 4,000 + 1,000 clips of moving digits in 10 classes
                  that only the order of frames tells apart
  still_digits    rendered, needs no source: 8,000 + 1,000 single frames of digits in 40 classes,
                  to train an image model to start from
  folder          your own videos: --source is a directory with a folder per class (or `train`
                  and `val` with class folders in each), or a CSV file with the columns path,
                  label and perhaps split

examples:
  python -m inti_jax.prepare motion_digits --data_dir data
  python -m inti_jax.prepare folder --source my_videos --data_dir data --name my_dataset
  python -m inti_jax.prepare folder --source my_videos.csv --labels labels.txt --data_dir data
"""
_REJECTED_SHOWN = 5


def main() -> None:
    args = _parse()
    # So that an interrupted build clears its temporary files, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    directory = _prepare_folder(args) if args.dataset == "folder" else _prepare_embedded(args)
    _print_summary(manifest.read(directory), directory)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m inti_jax.prepare",
        description="Checks videos, each by decoding it whole, and writes them as a dataset.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--data_dir", type=Path, required=True, help="where datasets are kept")
    parser.add_argument("--source", type=Path, help="directory or CSV file of videos (folder)")
    parser.add_argument("--name", help='the dataset\'s name in data_dir (folder; default "folder")')
    parser.add_argument(
        "--labels", type=Path, help="file of labels, one a line, that fixes their order (folder)"
    )
    parser.add_argument(
        "--val_share",
        type=float,
        help="share of each class that becomes `val` where the source has no splits (folder; default 0.2)",
    )
    args = parser.parse_args()
    if args.dataset not in NAMES:
        near = difflib.get_close_matches(args.dataset, NAMES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it is one of {', '.join(NAMES)}"
        parser.error(f"unknown dataset `{args.dataset}`; {hint}")
    if args.dataset == "folder":
        if args.source is None:
            parser.error("folder needs --source, a directory of class folders or a CSV file")
        args.name = "folder" if args.name is None else args.name
        args.val_share = 0.2 if args.val_share is None else args.val_share
        if args.name in NAMES and args.name != "folder":
            parser.error(f"--name {args.name} is taken by the dataset of that name")
        if not 0 <= args.val_share < 1:
            parser.error(f"--val_share {args.val_share} is not a share: it should be at least 0 and below 1")
    else:
        for option in ("source", "name", "labels", "val_share"):
            if getattr(args, option) is not None:
                parser.error(f"--{option} is for folder only")
    return args


# The builders are slow to import, so not before the arguments are found to be good.


def _prepare_embedded(args: argparse.Namespace) -> Path:
    if directory := dataset.find_dataset(args.dataset, args.data_dir):
        return _prepared_already(directory)
    from inti_jax.data.builders import motion_digits, still_digits

    builders: dict[str, Any] = {
        "motion_digits": motion_digits.MotionDigits,
        "still_digits": still_digits.StillDigits,
    }
    return builders[args.dataset](data_dir=args.data_dir).build()


def _prepare_folder(args: argparse.Namespace) -> Path:
    from inti_jax.data.builders import folder, video

    folder.check_name(args.name)
    labels, splits = folder.scan(args.source, labels_file=args.labels, val_share=args.val_share)
    if directory := dataset.find_dataset(args.name, args.data_dir):
        if manifest.read(directory).source != video.fingerprint(labels, splits):
            raise UserError(
                f"{directory} was prepared from other files, labels or splits than {args.source} has now: "
                f"choose another --name, or delete {directory} to prepare it anew"
            )
        return _prepared_already(directory)
    return folder.Folder(data_dir=args.data_dir, name=args.name, labels=labels, splits=splits).build()


def _prepared_already(directory: Path) -> Path:
    print(f"prepared already: to build it anew, delete {directory} or choose another place")
    return directory


def _print_summary(contents: manifest.Manifest, directory: Path) -> None:
    print(f"{contents.name} {contents.version} in {directory}, sha256 {contents.sha256[:16]}")
    print(f"  {len(contents.labels)} labels")
    for name, split in contents.splits.items():
        print(f"  {name}: {split.count} videos, {len(split.rejected)} rejected")
        for rejected in split.rejected[:_REJECTED_SHOWN]:
            print(f"    {rejected.source}: {rejected.reason}")
        if len(split.rejected) > _REJECTED_SHOWN:
            print(
                f"    and {len(split.rejected) - _REJECTED_SHOWN} more: see {directory / manifest.FILE_NAME}"
            )


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
