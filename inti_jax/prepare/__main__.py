"""Run `python -m inti_jax.prepare NAME`: turn a source of videos into a dataset to train and evaluate on."""

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from inti_jax.data import dataset, describe, manifest
from inti_jax.data.builders import registry
from inti_jax.errors import UserError, naming
from inti_jax.host.command import run_command
from inti_jax.host.paths import output_path
from inti_jax.host.stores import shown
from inti_jax.prepare.arguments import parse

if TYPE_CHECKING:
    from inti_jax.data.builders import base

_REJECTED_SHOWN = 5


def main(prog: str = "python -m inti_jax.prepare") -> None:
    """Prepare, check or describe datasets, as the command line says.

    Usage texts call the command `prog`.
    """
    args = parse(prog)
    # On SIGTERM, as on Ctrl-C, a build prints where the next one resumes.
    signal.signal(signal.SIGTERM, _interrupt)
    if args.check is not None:
        _check(args)
        return
    if args.describe is not None:
        _describe(args)
        return
    said: set[str] = set()
    embedded = args.dataset in registry.EMBEDDED
    directory = _prepare_embedded(args) if embedded else _prepare_files(args, said)
    contents = manifest.read(directory)
    _note(describe.notes(contents), said)
    _print_summary(contents, directory)


# The builders are slow to import, so the functions below import them after the arguments are checked.


def _options(args: argparse.Namespace) -> "base.Options":
    from inti_jax.data.builders import base

    flags = tuple(flag for flag in (args.beam_options or "").split(",") if flag)
    return base.Options(args.short_side, args.strict, args.workers, args.beam_runner, flags)


def _prepare_embedded(args: argparse.Namespace) -> Path:
    if directory := dataset.find_dataset(args.dataset, args.data_dir):
        return _prepared_already(directory)
    from inti_jax.data.builders import motion_digits, still_digits

    builders: dict[str, Any] = {
        "motion_digits": motion_digits.MotionDigits,
        "still_digits": still_digits.StillDigits,
    }
    return builders[args.dataset](data_dir=args.data_dir).build(_options(args))


def _prepare_files(args: argparse.Namespace, said: set[str]) -> Path:
    from inti_jax.data.builders import base, folder, locate
    from inti_jax.data.builders.annotations import Absent
    from inti_jax.data.builders.frames import Frames

    folder.check_name(args.name)
    lists = {"train": args.train_list, "val": args.val_list}
    lists = {split: path for split, path in lists.items() if path is not None}
    if args.dataset == "folder" and not lists:
        found = folder.scan(args.source, labels_file=args.labels, val_share=args.val_share, rate=args.rate)
    else:
        found = locate.scan(
            args.dataset,
            args.source,
            fold=args.fold,
            list_files=lists or None,
            labels_file=args.labels,
            rate=args.rate,
        )
    if directory := dataset.find_dataset(args.name, args.data_dir):
        source = base.fingerprint(found.labels, found.splits, _options(args), multi_label=found.multi_label)
        if manifest.read(directory).source != source:
            raise UserError(
                f"{directory} was prepared from other files, labels or splits than {args.source} has now, or "
                f"with another --short_side, --fps or --strict: choose another --name, or delete {directory} "
                "to prepare it anew"
            )
        return _prepared_already(directory)
    _note(found.notes, said)
    clips = [clip for split in found.splits.values() for clip in split]
    if args.fps is not None and not any(isinstance(clip.source, Frames) for clip in clips):
        _note([f"--fps is for frame folders, and {args.source} has none"], said)
    counts = {
        split: Counter(
            label
            for clip in clips
            if not isinstance(clip.source, Absent)
            for label in manifest.labels_in(clip.label, found.multi_label)
        )
        for split, clips in found.splits.items()
    }
    _note(describe.class_notes(found.labels, counts), said)
    official = registry.OFFICIAL.get(args.dataset)
    builder = folder.Folder(
        data_dir=args.data_dir,
        name=args.name,
        labels=found.labels,
        splits=found.splits,
        rejected=found.rejected,
        sampling=official.sampling if official else "",
        multi_label=found.multi_label,
    )
    return builder.build(_options(args))


def _note(notes: Iterable[str], said: set[str]) -> None:
    """Print the notes that are not in `said` yet on stderr, and add them to it."""
    for note in notes:
        if note not in said:
            print(f"note: {note}", file=sys.stderr)
    said.update(notes)


def _prepared_already(directory: Path) -> Path:
    from inti_jax.data.builders.journal import Journal

    Journal.beside(directory).clear()
    print(f"already prepared: to rebuild it, delete {shown(str(directory))} or choose another --data_dir")
    return directory


def _print_summary(contents: manifest.Manifest, directory: Path) -> None:
    place = shown(str(directory))
    print(f"{contents.name} {contents.version} in {place}, sha256 {contents.sha256[:16]}")
    print(f"  {len(contents.labels)} labels{', one or more a video' if contents.multi_label else ''}")
    if contents.sampling:
        print(f"  usual sampling: data.sampling={contents.sampling}")
    for name, split in contents.splits.items():
        print(f"  {name}: {describe.counted(split)}")
        for rejected in split.rejected[:_REJECTED_SHOWN]:
            print(f"    {rejected.source}: {rejected.reason}")
        if len(split.rejected) > _REJECTED_SHOWN:
            print(f"    and {len(split.rejected) - _REJECTED_SHOWN} more: see {place}/{manifest.FILE_NAME}")


def _check(args: argparse.Namespace) -> None:
    from inti_jax.data import check

    found = 0
    for difference in check.differences(args.check, decode_all=args.decode, workers=args.workers):
        print(difference)
        found += 1
    if found:
        raise UserError(
            f"{args.check} does not match its manifest, delete it and prepare it again; differences: {found}"
        )
    contents = manifest.read(args.check)
    print(f"{shown(str(args.check))} matches its manifest, sha256 {contents.sha256[:16]}")


def _describe(args: argparse.Namespace) -> None:
    described = describe.describe(args.describe)
    if args.json:
        print(json.dumps(describe.facts(described), indent=2))
    else:
        print(describe.text(described))
    path = args.out or (None if args.json else output_path(f"{shown(str(args.describe[0]))}/describe.png"))
    if path is None:
        return
    from inti_jax import drawing

    picture = drawing.png(lambda pyplot: describe.draw(described, pyplot), str(path))
    if picture is not None:
        with naming(path):
            path.write_bytes(picture)
        print(f"drawn in {shown(str(path))}", file=sys.stderr)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
