"""What runs recorded, for comparison between them."""

from pathlib import Path
from typing import Any

from inti_jax.runs.writers.jsonl import read_metrics

_OF_THE_MACHINE = {"step_seconds", "videos_per_second", "data_wait", "resident_bytes", "seconds"}


def computed(workdir: Path) -> list[dict[str, Any]]:
    """The records of training and evaluation without what the machine and the start have a part in."""
    return [
        {key: value for key, value in record.items() if key not in _OF_THE_MACHINE}
        for record in read_metrics(workdir)
        if record["split"] not in ("compile", "restart")
    ]
