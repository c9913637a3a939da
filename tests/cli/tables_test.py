"""Tables as text, as Markdown and on a real pseudo-terminal, and lines beside progress bars."""

import dataclasses
import math
import re

import pytest

from inti_jax.ablation import tables as ablation
from inti_jax.cli import tables
from inti_jax.cli.tables import Table
from tests import commands
from tests.ablation.tables_test import CELLS, DIGITS
from tests.configs import INTI, tiny
from tests.reports import made_up
from tests.terminals import ESCAPES, stdout_on_terminal

TABLE = Table(["run", "top-1"], [["one", "45.1"], ["[b]two", "49.3"]], {(1, 1)})
PLAIN = "run     top-1\n------  -----\none      45.1\n[b]two   49.3"
BEST = "\x1b[1;32m"


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(*arguments, **keywords):
    with stdout_on_terminal(**keywords) as written:
        print(tables.for_stdout(*arguments))
    return written[0]


def test_elsewhere_than_on_a_terminal_a_table_is_plain(capsys):
    print(tables.for_stdout(TABLE))
    print(tables.for_stdout(TABLE, TABLE.markdown))
    assert capsys.readouterr().out == (
        f"{PLAIN}\n| run | top-1 |\n|---|---|\n| one | 45.1 |\n| [b]two | 49.3 |\n"
    )


def test_a_terminal_shows_the_best_value_in_colour():
    found = shown(TABLE, TABLE.markdown)
    assert found.count(BEST) == 1 and f"{BEST}49.3\x1b[0m" in found
    lines = [line.rstrip() for line in ESCAPES.sub("", found).splitlines()]
    assert [line.split() for line in lines if "─" not in line] == [
        ["run", "top-1"], ["one", "45.1"], ["[b]two", "49.3"],
    ]  # fmt: skip
    assert (
        len({line.index(end) + len(end) for line, end in zip(lines[2:], ("45.1", "49.3"), strict=True)}) == 1
    )


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_turned_off(monkeypatch, name, value):
    with stdout_on_terminal() as written:
        monkeypatch.setenv(name, value)
        print(tables.for_stdout(TABLE))
    assert "\x1b" not in written[0] and "49.3" in written[0]


def test_a_narrow_terminal_loses_nothing():
    wide = Table(
        ["run", *("a figure" for _ in range(9))], [["a/long/name/of/a/run", *map(str, range(100, 109))]]
    )
    found = ESCAPES.sub("", shown(wide, columns=60))
    assert max(map(len, found.splitlines())) <= 60
    assert all(str(number) in found for number in range(100, 109))


def test_names_that_would_move_the_cursor_are_escaped():
    assert "\\x1b[2Jrun" in shown(Table(["run"], [["\x1b[2Jrun"]]))


def test_the_best_of_a_column():
    assert tables.best([1.0, 3.0, None, 3.0, math.nan], 2) == {(1, 2), (3, 2)}
    assert tables.best([1.0, 3.0], 0, lowest=True) == {(0, 0)}
    assert tables.best([2.0, 2.0], 0) == tables.best([2.0, None], 0) == tables.best([], 0) == set()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, of which the second is worse and cheaper."""
    out = tmp_path_factory.mktemp("runs")
    saved, views = made_up.predicted()
    worse = views[:, :, ::-1].copy()
    return [
        made_up.run(
            out / name,
            settings=tiny("nowhere", eval__clips=2, **changes),
            found=(dataclasses.replace(saved, probabilities=of.mean(axis=1)), of),
        )
        for name, changes, of in (("run1", {}, views), ("run2", INTI, worse))
    ]


def test_evaluate_and_report_have_colours_on_a_terminal_alone(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(runs[0].parent)
    runs = [path.name for path in runs]
    for command, arguments, best in (
        (commands.evaluate, runs, r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]"),
        (commands.report, [*runs, "--out", tmp_path], r"0\.04326"),
    ):
        with stdout_on_terminal() as written:
            assert command(*arguments) == 0
        assert command(*arguments) == 0
        piped = capsys.readouterr().out
        assert re.search(re.escape(BEST) + best, written[0]) and "\x1b" not in piped
        # The same figures in both.
        figures = [re.findall(r"\d[\d.,]*", ESCAPES.sub("", text)) for text in (written[0], piped)]
        assert figures[0] == figures[1]


def test_ablate_has_colours_on_a_terminal():
    rows = ablation.rows(CELLS, DIGITS)
    for table in (ablation.table(rows), ablation.differences(rows)):
        best = {table.rows[row][column] for row, column in table.best}
        found = shown(table, table.markdown)
        assert bool(table.best) == (len(table.rows) > 1)
        assert set(re.findall(re.escape(BEST) + r"([^\x1b]*)", found)) == best
