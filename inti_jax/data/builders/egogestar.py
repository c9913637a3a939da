"""List the videos of EgoGestAR's public test set by name, in five folds that share no background.

They are in the folder `testvideo` of github.com/varunj/EgoGestAR: pointing gestures seen from the head.
There are no annotation files. A video's name is its label and a number: `left_12.mp4`.
"""

from pathlib import Path

from inti_jax.data.builders.annotations import SPLITS, Annotations, Listed
from inti_jax.data.builders.tree import Tree

# The background of each video, found by looking at all of them. Each row has those of a label, in the order
# of the numbers, from 1. A label has most backgrounds once, and all labels have the same ones, often but not
# always under the same number. So the numbers alone do not split the videos by background. Videos named
# `unclassified` are not used. Those marked -- were not available, so their backgrounds are not known.
_BACKGROUNDS = """
carret   cur red ofc wal gcu pnk brn bld plt tre dsk mon dot rug wrd red hom hom dor gcu chv mar
circlecc cur hom mar pnk red chv ofc brn pld fld pld tre pld bld plt dsk mon dot rug wrd gcu hom
del      cur brn fld pld pld pld pld bld plt tre dsk mon dot rug wrd red hom hom dor gcu chv mar
down     cur ofc pnk cor drk ofc brn bld plt tre dsk mon dot rug wrd red hom hom dor gcu chv mar
left     cur kit blk cor drk pnk brn bld plt tre dsk mon dot rug wrd red hom hom dor gcu chv mar
right    cur cor gcu ofc gcu drk ofc brn bld tre dsk mon dot rug wrd red hom hom dor gcu chv mar
square   cur pnk drk pnk ofc brn fld bld plt tre dsk mon dot rug wrd red hom --  dor gcu chv mar
star     cur pnk drk ofc ofc pnk brn bld plt tre dsk mon dot rug wrd red --  --  dor gcu chv mar
tick     cur pnk mar drk brn fld pld bld plt tre dsk mon dot rug wrd red hom hom dor gcu chv mar
up       cur red pnk cor pnk drk brn bld plt tre dsk mon dot rug wrd red hom hom dor gcu chv mar
"""
# The backgrounds of each fold. Those that may show parts of one place are in one fold: the tiles `mar` are
# seen beside the blankets `red`, on which `chv` lies; `dsk` and `mon` have the same desk. Each fold has three
# to six videos of each label.
FOLDS = (
    {
        "cur": "sheer curtain",
        "cor": "corridor",
        "drk": "dark wardrobe and door",
        "ofc": "office with a carpet of circles",
        "fld": "fields from a window",
        "pld": "white, green and glass walls, before which the same plaid sleeve points",
        "kit": "kitchen",
        "blk": "black wardrobe",
        "wal": "white wall beside a black edge",
    },
    {"brn": "brown wall", "bld": "building behind a lawn", "plt": "pot plants", "tre": "trees and houses"},
    {"dsk": "desk before a grey wall", "mon": "monitor", "dot": "dotted sheet", "rug": "red rug"},
    {
        "wrd": "light wardrobe",
        "hom": "walls, shelves and patterned curtains of one home by flash",
        "dor": "brown door",
        "pnk": "pink curtain, and the wall beside it",
    },
    {
        "red": "red and white blanket",
        "chv": "blanket with chevrons",
        "mar": "marble tiles",
        "gcu": "grey curtain",
    },
)


def backgrounds() -> dict[str, str]:
    """Return the background of each video, by its name without suffix."""
    found = {}
    for row in _BACKGROUNDS.strip().splitlines():
        label, *of_label = row.split()
        for number, background in enumerate(of_label, start=1):
            if background != "--":
                found[f"{label}_{number}"] = background
    return found


def read(_: Tree, fold: int) -> Annotations:
    """List the videos: those before the backgrounds of `fold` (from 1) are `val`. Labels are sorted."""
    splits: dict[str, list[Listed]] = {split: [] for split in SPLITS}
    for row, (name, background) in enumerate(backgrounds().items(), start=1):
        label = name.partition("_")[0]
        split = "val" if background in FOLDS[fold - 1] else "train"
        listed = Listed(name, label, Path("the list of EgoGestAR"), row, (name,), folder="testvideo")
        splits[split].append(listed)
    return Annotations(tuple(sorted({row.label for row in splits["train"]})), splits)
