"""Of servetwin's own sources, what changes a simulation counts, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness.descriptions import inputs
from harness.descriptions.inputs import files_digest, sources_digest, syntax

SOURCE = """\
'''What it is.'''
LIMIT = 3

class Twin:
    '''One.'''

    def step(self, n):
        '''Take a step.'''
        return f"{n:>{LIMIT}}" + "x"
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    (tmp_path / "traces").mkdir()
    file = tmp_path / "traces" / "a.py"
    file.write_text(SOURCE)
    return file


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("LIMIT = 3", "LIMIT = 3  # as many as there are", False),
        ("LIMIT = 3", "LIMIT = (\n    3\n)", False),
        ("'''What it is.'''", "'''What it was.'''", False),
        ("    '''One.'''\n\n", "", False),
        ("        '''Take a step.'''\n", "", False),
        ("LIMIT = 3", "LIMIT = 4", True),
        ("LIMIT = 3", "LIMIT = 3.0", True),
        ('"x"', '"y"', True),
        ("LIMIT = 3", "LIMIT = 3\nOTHER = []", True),
        ("self, n", "self, n=None", True),
        (":>{LIMIT}", "", True),
    ],
)
def test_what_python_reads_counts_and_what_only_people_read_does_not(
    source: Path, old: str, new: str, *, counts: bool
) -> None:
    before, bytes_before = sources_digest(), files_digest()
    assert old in SOURCE
    source.write_text(SOURCE.replace(old, new))
    assert (sources_digest() != before) == counts
    assert files_digest() != bytes_before


def test_the_name_of_a_file_counts(source: Path) -> None:
    before = sources_digest()
    source.rename(source.with_name("b.py"))
    assert sources_digest() != before


def test_a_text_behind_a_statement_is_no_docstring() -> None:
    one, two = (syntax(ast.parse(f"def f():\n    return 1\n    {text!r}\n")) for text in "ab")
    assert one != two


def test_an_empty_end_of_an_f_string_is_nothing() -> None:
    """Python 3.12 has one where a format specification ends with a value; 3.11 and 3.13 have none."""
    tree = ast.parse('f"{a:<{b}}"')
    plain = syntax(tree)
    specs = [part.format_spec for part in ast.walk(tree) if isinstance(part, ast.FormattedValue)]
    (spec,) = [spec for spec in specs if isinstance(spec, ast.JoinedStr)]
    spec.values = [*spec.values, ast.Constant("")]
    assert syntax(tree) == plain
