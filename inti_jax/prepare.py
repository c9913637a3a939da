"""`python -m inti_jax.prepare NAME`: a source of videos becomes a dataset to train and evaluate on."""

import argparse
import difflib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from inti_jax.data import dataset, manifest
from inti_jax.data.builders import registry
from inti_jax.errors import UserError, run_command
from inti_jax.paths import local_path

if TYPE_CHECKING:
    from inti_jax.data.builders import video

_EPILOG = f"""\
datasets:
{registry.describe()}

A published dataset's --source is where its annotations and videos are, as docs/data.md shows. With
--train_list and --val_list it, or `folder`, is read from lists of paths and label numbers instead.

examples:
  python -m inti_jax.prepare motion_digits --data_dir data
  python -m inti_jax.prepare folder --source my_videos --data_dir data --name my_dataset
  python -m inti_jax.prepare folder --source my_videos.csv --labels labels.txt --data_dir data
  python -m inti_jax.prepare ucf101 --source ucf --fold 2 --name ucf101_fold2 --data_dir data
  python -m inti_jax.prepare ssv2 --source videos --train_list train.txt --val_list val.txt \\
    --labels labels.txt --data_dir data
  python -m inti_jax.prepare kinetics400 --source k400 --data_dir data --short_side 256
  python -m inti_jax.prepare --check data/kinetics400/1.0.0
"""
_REJECTED_SHOWN = 5


def main() -> None:
    args = _parse()
    # So that an interrupted build says where it goes on, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    if args.check is not None:
        _check(args)
        return
    directory = _prepare_embedded(args) if args.dataset in registry.EMBEDDED else _prepare_files(args)
    _print_summary(manifest.read(directory), directory)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m inti_jax.prepare",
        description="Checks videos, each by decoding it whole, and writes them as a dataset.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", metavar="NAME", nargs="?", help=", ".join(registry.NAMES))
    parser.add_argument("--data_dir", type=local_path, help="where datasets are kept")
    parser.add_argument("--source", type=local_path, help="directory of videos, or CSV file (folder)")
    parser.add_argument("--name", help="the dataset's name in data_dir (default: NAME)")
    parser.add_argument(
        "--labels", type=local_path, help="file of labels, one a line, that fixes their order (folder, lists)"
    )
    parser.add_argument(
        "--train_list", type=local_path, help="list with a path and a label's number in each line"
    )
    parser.add_argument(
        "--val_list", type=local_path, help="... for `val`; numbers count the lines of --labels from 0"
    )
    parser.add_argument("--fold", type=int, help="which of the official splits (ucf101, hmdb51; default 1)")
    parser.add_argument(
        "--val_share",
        type=float,
        help="share of each class that becomes `val` where the source has no splits (folder; default 0.2)",
    )
    _add_general_options(parser)
    args = parser.parse_args()
    _check_general_options(parser, args)
    if args.check is not None:
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
            "short_side",
        ):
            if getattr(args, option) is not None:
                parser.error(f"--{option} is not for {args.dataset}, which is rendered")
    else:
        _check_files_options(parser, args)
    return args


def _check_files_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Completes the options of a dataset that is made from files; wrong ones end the program."""
    folder, lists = args.dataset == "folder", args.train_list is not None or args.val_list is not None
    if args.source is None:
        what = "a directory of class folders or a CSV file" if folder else "a directory, see docs/data.md"
        parser.error(f"{args.dataset} needs --source, {what}")
    if lists and args.labels is None:
        parser.error(
            "--train_list and --val_list need --labels, a file with the label of each number in a line"
        )
    if args.labels is not None and not folder and not lists:
        parser.error("--labels is for folder and for lists only: other annotations say the order of labels")
    if args.val_share is not None and (lists or not folder):
        parser.error("--val_share is for folder only, without lists")
    folds = 1 if folder or lists else registry.OFFICIAL[args.dataset].folds
    if args.fold is not None and not (folds > 1 and 1 <= args.fold <= folds):
        parser.error(
            f"--fold {args.fold}: {f'it is 1 to {folds}' if folds > 1 else 'there are no folds here'}"
        )
    args.fold = args.fold or 1
    args.name = args.dataset if args.name is None else args.name
    args.val_share = 0.2 if args.val_share is None else args.val_share
    if args.name in registry.EMBEDDED:
        parser.error(f"--name {args.name} is taken by the dataset of that name")
    if not 0 <= args.val_share < 1:
        parser.error(f"--val_share {args.val_share} is not a share: it should be at least 0 and below 1")


def _add_general_options(parser: argparse.ArgumentParser) -> None:
    """Options that are the same for every dataset of files."""
    how = parser.add_argument_group("how it is prepared")
    how.add_argument(
        "--short_side",
        type=int,
        metavar="N",
        help="encode every video anew, as H.264 that is quick to decode, with N pixels along its "
        "shorter side where there are more",
    )
    how.add_argument("--workers", type=int, metavar="N", help="threads (default: one for each core)")
    how.add_argument("--beam_runner", metavar="NAME", help="run on this Apache Beam runner instead")
    how.add_argument("--beam_options", metavar="K=V,...", help="its options, such as region=europe-west4")
    check = parser.add_argument_group("checking a prepared dataset, without NAME")
    check.add_argument(
        "--check",
        type=local_path,
        metavar="DIR",
        help="compare all that DIR holds with its manifest: data/NAME/1.0.0",
    )
    check.add_argument("--decode", action="store_true", help="and decode every video")


def _check_general_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Wrong ones end the program."""
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers {args.workers}: it should be at least 1")
    if args.check is not None:
        given = {name for name, value in vars(args).items() if value not in (None, False)}
        if others := sorted(given - {"check", "decode", "workers"}):
            parser.error(f"--check takes --decode and --workers only, not {others[0]}")
        return
    if args.dataset is None or args.data_dir is None:
        parser.error("NAME and --data_dir are needed: which dataset to prepare, and where datasets are kept")
    if args.decode:
        parser.error("--decode is for --check only: preparing decodes every video anyway")
    if args.short_side is not None and (args.short_side < 16 or args.short_side % 2):
        parser.error(f"--short_side {args.short_side}: it should be an even number of at least 16 pixels")
    if args.beam_runner is None and args.beam_options is not None:
        parser.error("--beam_options needs --beam_runner")
    if args.beam_runner is not None and args.workers is not None:
        parser.error(
            "--workers is not for Apache Beam: how many there are is the runner's, see --beam_options"
        )


# The builders are slow to import, so not before the arguments are found to be good.


def _options(args: argparse.Namespace) -> "video.Options":
    from inti_jax.data.builders import video

    flags = tuple(flag for flag in (args.beam_options or "").split(",") if flag)
    return video.Options(args.short_side, args.workers, args.beam_runner, flags)


def _prepare_embedded(args: argparse.Namespace) -> Path:
    if directory := dataset.find_dataset(args.dataset, args.data_dir):
        return _prepared_already(directory)
    from inti_jax.data.builders import motion_digits, still_digits

    builders: dict[str, Any] = {
        "motion_digits": motion_digits.MotionDigits,
        "still_digits": still_digits.StillDigits,
    }
    return builders[args.dataset](data_dir=args.data_dir).build(_options(args))


def _prepare_files(args: argparse.Namespace) -> Path:
    from inti_jax.data.builders import folder, locate, video

    folder.check_name(args.name)
    notes: tuple[str, ...] = ()
    lists = {"train": args.train_list, "val": args.val_list}
    lists = {split: path for split, path in lists.items() if path is not None}
    if args.dataset == "folder" and not lists:
        labels, splits = folder.scan(args.source, labels_file=args.labels, val_share=args.val_share)
    else:
        labels, splits, notes = locate.scan(
            args.dataset, args.source, fold=args.fold, list_files=lists or None, labels_file=args.labels
        )
    if directory := dataset.find_dataset(args.name, args.data_dir):
        if manifest.read(directory).source != video.fingerprint(labels, splits, args.short_side):
            raise UserError(
                f"{directory} was prepared from other files, labels or splits than {args.source} has now, or "
                f"with another --short_side: choose another --name, or delete {directory} to prepare it anew"
            )
        return _prepared_already(directory)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    official = registry.OFFICIAL.get(args.dataset)
    builder = folder.Folder(
        data_dir=args.data_dir,
        name=args.name,
        labels=labels,
        splits=splits,
        sampling=official.sampling if official else "",
    )
    return builder.build(_options(args))


def _prepared_already(directory: Path) -> Path:
    from inti_jax.data.builders.journal import Journal

    Journal.beside(directory).discard()  # there if the build was killed in its last moment
    print(f"prepared already: to build it anew, delete {directory} or choose another place")
    return directory


def _print_summary(contents: manifest.Manifest, directory: Path) -> None:
    print(f"{contents.name} {contents.version} in {directory}, sha256 {contents.sha256[:16]}")
    print(f"  {len(contents.labels)} labels")
    if contents.sampling:
        print(f"  its clips are usually taken with data.sampling={contents.sampling}")
    for name, split in contents.splits.items():
        print(f"  {name}: {split.count} videos, {len(split.rejected)} rejected")
        for rejected in split.rejected[:_REJECTED_SHOWN]:
            print(f"    {rejected.source}: {rejected.reason}")
        if len(split.rejected) > _REJECTED_SHOWN:
            print(
                f"    and {len(split.rejected) - _REJECTED_SHOWN} more: see {directory / manifest.FILE_NAME}"
            )


def _check(args: argparse.Namespace) -> None:
    from inti_jax.data import check

    found = 0
    for difference in check.differences(args.check, decode_all=args.decode, workers=args.workers):
        print(difference)
        found += 1
    if found:
        raise UserError(f"{args.check} is not what its manifest says: differences: {found}")
    contents = manifest.read(args.check)
    print(f"{args.check} is what its manifest says, sha256 {contents.sha256[:16]}")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
