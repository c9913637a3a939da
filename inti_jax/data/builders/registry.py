"""List the datasets that `prepare` knows, with the reader, number of classes and description of each."""

import textwrap
from collections.abc import Callable
from typing import NamedTuple

from inti_jax.data.builders import diving48, egogestar, hmdb51, kinetics, ssv2, ucf101
from inti_jax.data.builders.annotations import Annotations
from inti_jax.data.builders.tree import Tree


class Official(NamedTuple):
    """A published dataset.

    `sampling` is the `data.sampling` that it is usually trained and evaluated with, or "" if both `dense` and
    `uniform` are usual. `uniform` belongs to datasets whose labels describe the whole video, because a dense
    clip may not show its label. `folds` is the number of known ways to split the dataset. Where there are
    several, `read` takes the number of the fold as well.
    """

    title: str
    classes: int
    sampling: str
    read: Callable[..., Annotations]
    about: str
    folds: int = 1

    def annotations(self, tree: Tree, fold: int) -> Annotations:
        """Read the annotations in `tree`, those of `fold` where there are several."""
        return self.read(tree, fold) if self.folds > 1 else self.read(tree)


OFFICIAL = {
    "kinetics400": Official(
        "Kinetics-400", 400, "dense", kinetics.read, "train.csv and val.csv, beside videos"
    ),
    "kinetics600": Official("Kinetics-600", 600, "dense", kinetics.read, "as kinetics400"),
    "kinetics700": Official("Kinetics-700", 700, "dense", kinetics.read, "as kinetics400"),
    "ssv2": Official(
        "Something-Something V2", 174, "uniform", ssv2.read, "labels.json, train.json and validation.json"
    ),
    "ucf101": Official(
        "UCF101", 101, "", ucf101.read, "ucfTrainTestlist and UCF-101; --fold is 1, 2 or 3", folds=3
    ),
    "hmdb51": Official(
        "HMDB51", 51, "", hmdb51.read, "<class>_test_split1.txt of each; --fold is 1, 2 or 3", folds=3
    ),
    "diving48": Official(
        "Diving48", 48, "uniform", diving48.read, "Diving48_vocab.json, Diving48_V2_{train,test}.json"
    ),
    "egogestar": Official(
        "EgoGestAR",
        10,
        "uniform",
        egogestar.read,
        "testvideo; --fold is 1 to 5",
        folds=len(egogestar.FOLDS),
    ),
}
EMBEDDED = {
    "motion_digits": "rendered, needs no source: 4,000 + 1,000 clips of moving digits in 10 classes that "
    "only the order of frames tells apart",
    "still_digits": "rendered, needs no source: 8,000 + 1,000 single frames of digits in 40 classes, to "
    "train an image model to start from",
}
FOLDER = (
    "your own videos, as files or as folders of numbered images: --source is a directory with a folder per "
    "class (or `train` and `val` with class folders in each), or a CSV file with the columns path, label and "
    "perhaps split"
)
NAMES = (*EMBEDDED, "folder", *OFFICIAL)


def describe() -> str:
    """Format a paragraph about each dataset, for the command's help."""
    abouts = {
        **EMBEDDED,
        "folder": FOLDER,
        **{name: f"{entry.title}: {entry.about}" for name, entry in OFFICIAL.items()},
    }
    return "\n".join(
        textwrap.fill(about, 96, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18)
        for name, about in abouts.items()
    )
