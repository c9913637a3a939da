import json
import re

import pytest

from inti_jax import report
from inti_jax.errors import UserError


def test_a_report_stands_alone(trained_run, tmp_path):
    table = report.write([trained_run], tmp_path, "A <title>", timed=True)
    header, _, row = table.splitlines()
    assert header.split()[:3] == ["run", "top-1", "top-5"] and row.startswith("inti")
    (figures,) = json.loads((tmp_path / "report.json").read_text())
    tower = 64 * 3 * 96 + 96 + 17 * 96 + 4 * (12 * 96**2 + 13 * 96) + 2 * 192
    inti = 192 + 96 * 64 + 2 * (128**2 + 128) + 2 * 9 * 128 + 2 * 128 + 2
    assert figures["parameters"] == tower + inti + 96 * 10 + 10
    assert figures["inference_clips"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page and "data:image/png;base64," in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_evaluation_has_nothing_to_report(trained_run, tmp_path):
    (tmp_path / "config.json").write_bytes((trained_run / "config.json").read_bytes())
    with pytest.raises(UserError, match="was not evaluated"):
        report.write([tmp_path], tmp_path, "none", timed=False)
