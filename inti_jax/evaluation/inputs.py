"""Collect the videos that a command is given: files, folders of them, frame folders, and lists."""

import argparse
import os
import sys
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from inti_jax import cli
from inti_jax.errors import UsageError, UserError
from inti_jax.host import stores
from inti_jax.host.paths import input_path, path_or_url
from inti_jax.hub import names

_LISTS = (".txt", ".csv", ".tsv", ".lst")


class Videos(NamedTuple):
    """Video files and frame folders in the order given, and the places left out with the reason."""

    paths: list[Path]
    left_out: list[tuple[Path, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the videos and the trained model."""
    parser.add_argument(
        "videos",
        nargs="*",
        type=path_or_url,
        metavar="VIDEO",
        help="video files, folders of them (links are followed), or folders of a video's numbered frames",
    )
    parser.add_argument(
        "--list",
        type=input_path,
        metavar="FILE",
        help="text file with further VIDEOs, one a line, relative to the current directory; - is stdin",
    )
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the trained model."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=names.local_or_uri,
        metavar="RUN",
        help="run directory, or a file of what was trained, which `convert RUN --to trained` or "
        "`convert` of a fine-tuned AIM, ST-Adapter or ZeroI2V writes, or a shared model: the directory "
        "that `convert RUN --to hub` writes, or hf://org/name on the Hugging Face Hub",
    )
    parser.add_argument(
        "--pretrained",
        type=names.place,
        metavar="F",
        help="converted CLIP that such a file was trained on (default: the path that the run used)",
    )
    cli.add_step_argument(parser)
    cli.add_weights_argument(parser)


def check_output(path: Path, *suffixes: str, argument: str = "--out") -> None:
    """Raise UsageError where no file with one of these suffixes can be written at `path`."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{argument} {path}: the file's name should end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"{argument} {path}: it is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"{argument} {path}: there is no directory {path.parent}")


def collect(arguments: argparse.Namespace) -> Videos:
    """Find the videos that the arguments of `add_arguments` name.

    A named file is taken as a video, whatever its name; it need not exist until it is read. A URL is fetched,
    and left out where it cannot be. Raises UsageError
    where nothing is named, a list is unusable, or a list is given in place of a video, and UserError where a
    folder holds no video.
    """
    named = [*arguments.videos, *(_read_list(arguments.list) if arguments.list is not None else [])]
    if not named:
        raise UsageError("no videos: give files or folders, or a list of them as --list FILE")
    videos = Videos([], [])
    for place in named:
        if isinstance(place, str):  # a URL
            try:
                videos.paths.append(stores.fetch(place))
            except UserError as error:
                videos.left_out.append((stores.standing_for(place), str(error)))
            continue
        path = place
        if path.is_dir():
            _add_folder(path, videos)
        elif path.suffix.lower() in _LISTS and path.is_file():
            raise UsageError(f"{path} is not a video: give a list of videos as --list {path}")
        else:
            videos.paths.append(path)
    return videos


def _add_folder(folder: Path, videos: Videos) -> None:
    """Add the videos below a folder, recognised as in `prepare folder`: by name, else by opening them."""
    # Imported here, so that --help does not wait for the decoder.
    from inti_jax.data.builders.files import frames_among, is_video_name, source_of
    from inti_jax.data.builders.frames import is_image
    from inti_jax.data.builders.walk import walk

    found: list[tuple[Path, set[str]]] = []  # with its frames' names, for a folder of frames
    stems: set[str] = set()
    skipped = []
    for path, files, _, left_out in walk(folder):
        skipped += left_out
        stems.update(PurePosixPath(name).stem for name in files if is_video_name(name))
        if series := frames_among(files):
            found.append((path, {PurePosixPath(name).stem for name in series.names}))
        others = (path / name for name in files if not is_image(name))
        found += [(file, set()) for file in others if isinstance(source_of(file), Path)]
    # Images with the names of videos are pictures of those videos, not frames.
    paths = [path for path, frames in found if frames.isdisjoint(stems)]
    # Not reported: a place that is read by another path, and a file whose suffix is not a video's.
    missing = [
        (place.path, place.reason)
        for place in skipped
        if not place.again and (place.folder or not place.path.suffix or is_video_name(place.path.name))
    ]
    if not paths:
        why = f"; {missing[0][0]}: {missing[0][1]}" if missing else ""
        raise UserError(f"{folder} holds no videos, and no folders of numbered frames{why}")
    videos.paths.extend(paths)
    videos.left_out.extend(missing)


def _read_list(path: Path) -> list[Path | str]:
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"--list {path}: it cannot be read: {error.strerror}") from None
    if b"\0" in content:
        raise UsageError(f"--list {path}: it is not a text file with a video's path on each line")
    # Names need not be UTF-8. Editors may put a byte order mark first, and a carriage return at a line's end.
    lines = [line.removesuffix(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    paths: list[Path | str] = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                paths.append(path_or_url(os.fsdecode(line)))
            except UsageError as error:
                raise UsageError(f"--list {path} line {number}: {error}") from None
    if not paths:
        raise UsageError(f"--list {path}: it is empty")
    return paths
