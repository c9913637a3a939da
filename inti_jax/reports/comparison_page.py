"""Put together the page that compares runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from inti_jax import pages
from inti_jax.evaluation.analysis import ClassChange, Evaluated
from inti_jax.reports import comparison, curves, runs, settings, speed
from inti_jax.reports.charts import chart, pareto, training
from inti_jax.reports.charts.chart import Chart
from inti_jax.reports.comparison import Pair, Point
from inti_jax.reports.runs import Run


def render(found: Sequence[Run], title: str, speeds: Mapping[Path, float]) -> str:
    """Render the page of several runs. `speeds` are clips a second at inference, where they were measured.

    What cannot be read, or is not there, becomes a line on it.
    """
    by_run = {run.name: runs.summarize(run, speeds.get(run.workdir)) for run in found}
    table = runs.table([row for rows in by_run.values() for row in rows])
    metric = " or ".join(dict.fromkeys(run.metric for run in found))
    evaluated, notes = _predictions(found)
    points = [point for run in found if (point := _point(run, by_run[run.name][0], evaluated.get(run.name)))]
    pairs = comparison.pairs(evaluated) if len(evaluated) > 1 else []
    colours = {run.name: chart.COLOURS[place % len(chart.COLOURS)] for place, run in enumerate(found)}
    of_points: list[Chart] = [pareto.of_runs(points, metric, colours)] if points else []
    drawn = training.of_several({run.name: curves.gather(run) for run in found}, metric)
    names = list(evaluated)
    changes = settings.differences([run.record.config for run in found])
    return pages.render(
        "comparison.html",
        title=title,
        colours=colours,
        headers=table.headers,
        rows=table.rows,
        notes=runs.notes(found),
        timing=speed.note(bool(speeds)),
        pareto=of_points,
        names=names,
        only_first=len(names) > comparison.ALL_PAIRS,
        pair_notes=notes,
        pairs=[_row(pair) for pair in pairs],
        curves=drawn,
        changes=[[key, *values] for key, values in changes],
        records=[(run.name, json.dumps(run.record.to_json(), indent=2)) for run in found],
        charts=chart.document([*of_points, *drawn]),
        data={"pairs": [_as_json(pair) for pair in pairs]},
        library=Markup(chart.library()),
    )


def _predictions(found: Sequence[Run]) -> tuple[dict[str, Evaluated], list[str]]:
    """Read the predictions of the runs by their names, and say why there are none."""
    evaluated, notes = {}, []
    for run in found:
        predictions, problem = runs.predictions(run)
        if predictions is not None:
            evaluated[run.name] = predictions
        if problem is not None:
            notes.append(problem)
    return evaluated, notes


def _point(run: Run, row: runs.Summary, evaluated: Evaluated | None) -> Point | None:
    """Make the run's point of cost and accuracy; None where it has no own evaluation of its final step."""
    if evaluated is not None:
        figure = comparison.main_figure(evaluated)
        return Point(run.name, row.gmacs, figure.value, (figure.low, figure.high))
    value = row.map if run.metric == "mAP" else row.top1
    return None if value is None else Point(run.name, row.gmacs, value, None)


def _row(pair: Pair) -> list[str]:
    """Tabulate a pair."""
    if pair.found is None:
        return [pair.first, pair.second, "", "", "", pair.problem]
    low, high = (f"{100 * edge:+.1f}" for edge in pair.found.difference[1:])
    signs = pair.found.signs
    return [
        pair.first,
        pair.second,
        f"{100 * pair.found.difference.value:+.1f}",
        f"{low} to {high}",
        "" if signs is None else f"{signs.p:.2g}",
        f"{pair.found.videos:,} videos",
    ]


def _as_json(pair: Pair) -> dict[str, Any]:
    """Make the value that the page's choice of two runs reads."""
    found = pair.found
    if found is None:
        return {"first": pair.first, "second": pair.second, "problem": pair.problem}
    gain, lose = comparison.changed(found)
    return {
        "first": pair.first,
        "second": pair.second,
        "metric": "mAP" if found.main == "map" else "top-1",
        "values": list(found.values),
        "difference": list(found.difference),
        "signs": None if found.signs is None else list(found.signs),
        "videos": found.videos,
        "leftOut": found.left_out,
        "gain": [_change(change) for change in gain],
        "lose": [_change(change) for change in lose],
    }


def _change(change: ClassChange) -> list[Any]:
    return [change.name, change.videos, change.first, change.second, change.q]
