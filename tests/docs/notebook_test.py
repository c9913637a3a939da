"""The notebook is that of its text, and runs from its first cell to its last, in a kernel of its own."""

import base64
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat

from tests.docs.pages import ROOT, script
from tests.processes import environment

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_notebook_is_what_its_text_says():
    text = script("notebook").notebook()
    assert NOTEBOOK.read_text() == text, "run ./launch/docs.sh, which writes it anew"
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert not any(cell.get("outputs") for cell in nbformat.reads(text, as_version=4).cells)


def test_it_runs_on_the_embedded_dataset(motion_data, tmp_path):
    (tmp_path / "data").symlink_to(motion_data)  # a small one, prepared already
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = environment(1) | {"STEPS": "2", "PYTHONPATH": str(ROOT), "PATH": programs}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=variables)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    assert "already prepared" in said
    assert re.search(r"^forwards \[\('\w+', -?\d", said, re.MULTILINE) and "backwards [(" in said
    assert "McNemar" in said
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3 and all(len(base64.b64decode(picture)) > 5000 for picture in pictures)
