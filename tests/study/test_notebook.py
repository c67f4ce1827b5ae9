"""A stored notebook read without nbformat, as nbformat reads it."""

import subprocess
import sys

import nbformat
import pytest

from e2d_lib.study import notebook
from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_cells_are_nbformats(path):
    expected = [
        (cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in nbformat.read(path, as_version=4).cells
    ]
    assert notebook.stored_cells(path) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": [{"cell_type": "code"}]}'])
def test_another_file_is_one_line(tmp_path, text):
    (tmp_path / "01_broken.ipynb").write_text(text)
    (chapter,) = notebook.notebooks(tmp_path)
    with pytest.raises(notebook.StudyError, match=r"01_broken\.ipynb is no Jupyter notebook"):
        chapter.parameters  # noqa: B018 (read when it is asked for)


def test_a_chapters_kernel_does_without_nbformat():
    asked = "import sys, e2d_lib.study.chapter, e2d_lib.study.lab; sys.exit('nbformat' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], cwd=ROOT).returncode == 0
