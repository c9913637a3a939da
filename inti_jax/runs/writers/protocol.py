"""Define the interface of a writer, to which a run reports its figures."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Writer(Protocol):
    """A destination of a run's records. Only process 0 has writers.

    It is made with the run's directory, its config, and `from_step`. A run that goes on after `from_step`
    writes the records of later steps again, so the writer drops those that it has, if it can. `from_step` is
    None where a record is added and nothing repeated.
    """

    def write(self, step: int, split: str, figures: Mapping[str, Any], variant: Sequence[str]) -> None:
        """Write a record: `figures` are JSON values by name, of `step` in `split`.

        `variant` names what is unusual about the record, and separates its curves from the split's others.
        """
        ...

    def settle(self) -> None:
        """Make sure that the records so far outlive this machine, as the checkpoint that follows does."""
        ...

    def close(self) -> None:
        """Close the destination, without an error about what could not be written."""
        ...


def scalars(split: str, figures: Mapping[str, Any], variant: Sequence[str]) -> dict[str, int | float]:
    """Name the finite numbers of a record as curves: `train/loss`, `val_views_12/top1`."""
    group = re.sub(r"\W+", "_", "_".join([split, *variant]))
    return {
        f"{group}/{name}": value
        for name, value in figures.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
