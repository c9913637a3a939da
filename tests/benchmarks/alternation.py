"""Time programs in turn, so that whatever else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Run each program once in each round; return the seconds of each in each round.

    A program returns once all is computed. It should have run before, so that it is compiled.
    """
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return taken
