"""Checklists and claims: every item is answered once, and what an answer points to is there."""

import re

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "results" / "checklists"
TRIPOD = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}
ITEMS = {
    "claim-2024.md": [str(k) for k in range(1, 45)],
    "tripod-ai.md": [f"{k}{part}" for k in range(1, 28) for part in TRIPOD.get(k, [""])],
}


@pytest.mark.parametrize("name", ITEMS)
def test_every_item_is_answered_once(name):
    rows = re.findall(r"^\| *(\d+[a-g]?) *\|([^|]+)\|([^|]+)\|$", (FOLDER / name).read_text(), re.M)
    assert [number for number, _, _ in rows] == ITEMS[name]
    assert all(asked.strip() and answer.strip() for _, asked, answer in rows)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.name)
def test_what_an_answer_points_to_is_there(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert links and not [
        link for link in links if not link.startswith("https://") and not (path.parent / link).exists()
    ]


def test_each_kind_of_input_has_a_test_that_exists():
    """Named by its function, or by function[case]."""
    named = re.findall(r"\[`(test_\w+)(?:\[([^]]+)\])?`\]\(([^)]+)\)", (FOLDER / "odd-inputs.md").read_text())
    assert len(named) > 80
    for function, case, path in named:
        source = (FOLDER / path).read_text()
        assert f"def {function}(" in source and (not case or f'"{case}"' in source), (function, case, path)
    rows = [line for line in (FOLDER / "odd-inputs.md").read_text().splitlines() if line.startswith("| ")]
    assert all("[`test_" in row or row == "| input | what a user sees | test |" for row in rows)
