"""Read HMDB51's annotations: a list for each class and fold, which puts each video in a part."""

import re
from pathlib import PurePosixPath

from inti_jax.data.builders.annotations import SPLITS, Annotations, Listed, check_label, read_lines, shown
from inti_jax.data.builders.tree import Tree
from inti_jax.errors import UserError

# The split of each part. A video of part 0 is in neither split of its fold.
_PARTS: dict[str, str | None] = {"0": None, "1": "train", "2": "val"}


def read(tree: Tree, fold: int) -> Annotations:
    """Read `<class>_test_split<fold>.txt` of every class. The test videos are `val`. Labels are sorted.

    Raises UserError, naming file and row.
    """
    ending = f"_test_split{fold}.txt"
    files = {path.name: path for path in tree.texts(rf".+{re.escape(ending)}")}
    if not files:
        raise UserError(f"<class>{ending} is not in {tree.root} or up to two folders below")
    splits: dict[str, list[Listed]] = {split: [] for split in SPLITS}
    labels = sorted(name.removesuffix(ending) for name in files)
    for label in labels:
        check_label(label, f"{files[label + ending]}'s name")
        path = tree.text(label + ending)
        for row, line in read_lines(path):
            where = f"{path} row {row}"
            name, _, part = line.rpartition(" ")
            name = name.strip()
            if not name or "/" in name or part not in _PARTS:
                raise UserError(f"{where}: {shown(line)} should be a file name and 0, 1 or 2")
            if split := _PARTS[part]:
                stem = PurePosixPath(name).stem
                splits[split].append(Listed(f"{label}/{stem}", label, path, row, (stem,), folder=label))
    if not any(splits.values()):
        raise UserError(f"the files named <class>{ending} below {tree.root} list no video")
    return Annotations(tuple(labels), {split: listed for split, listed in splits.items() if listed})
