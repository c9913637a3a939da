"""Write the report of one run or of several: the page, and its table as JSON."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from inti_jax import pages
from inti_jax.cli.tables import Table
from inti_jax.errors import naming
from inti_jax.host.names import printable
from inti_jax.reports import runs
from inti_jax.runs.record import RunRecord

log = logging.getLogger("inti_jax")


def write_own(workdir: Path) -> None:
    """Write the report of a finished run to its directory.

    An error does not fail the run: it becomes one line in the log.
    """
    try:
        record = RunRecord.read(workdir)
        (name,) = runs.names([workdir]).values()
        write([workdir], workdir, f"{record.config.data.name}: {name}", timed=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        log.warning("%s: the report could not be written (%s: %s)", workdir, type(error).__name__, reason)


def write(workdirs: Sequence[Path], out: Path, title: str, *, timed: bool) -> Table:
    """Write report.html and report.json to `out`, and return the table.

    With `timed`, each model's forward pass is timed on this machine, in turns. Raises ConfigError for a
    directory that holds no run, and UserError for a run whose records cannot be read.
    """
    # Late: the command's --help need not wait for Bokeh.
    from inti_jax.reports import comparison_page, run_page, speed

    found = runs.read(workdirs)
    speeds = speed.measure(found) if timed else {}
    rows = [row for run in found for row in runs.summarize(run, speeds.get(run.workdir))]
    for note in runs.notes(found):
        log.warning("%s", note)
    if len(found) == 1:
        page = run_page.render(found[0], printable(title), speeds.get(found[0].workdir))
    else:
        page = comparison_page.render(found, printable(title), speeds)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    partial = path.with_name(f"{path.name}.partial")
    with naming(partial):
        partial.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    partial.replace(path)
    pages.write(out / "report.html", page)
    return runs.table(rows)
