"""How the code is laid out: the map in the package's docstring is complete, files are small, each has a docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

import aggregator

PACKAGE: Final = Path(aggregator.__file__).parent
FILES: Final = sorted(PACKAGE.rglob("*.py"))

MAX_LINES: Final = 450
"""One file is one concept, which a reader can keep in mind as a whole."""


def module_of(file: Path) -> str:
    """The name of a file's module, relative to the package; for an ``__init__.py``, that of its folder."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_map_has_every_module_once() -> None:
    listed = re.findall(r"^- ``([\w.]+)``", aggregator.__doc__ or "", re.MULTILINE)

    assert sorted(listed) == sorted(module for module in map(module_of, FILES) if module)


def test_a_line_of_the_map_says_something() -> None:
    for line in re.findall(r"^- .*", aggregator.__doc__ or "", re.MULTILINE):
        assert re.fullmatch(r"- ``[\w.]+`` +\S.*\S", line), line


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_short_and_says_what_it_is(file: Path) -> None:
    text = file.read_text()

    assert text.count("\n") <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "it has no docstring"


def test_each_folder_with_modules_is_a_package() -> None:
    assert {file.parent for file in FILES} == {file.parent for file in FILES if file.name == "__init__.py"}
