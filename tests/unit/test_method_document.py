"""The document of the method names things that the code has."""

import importlib
import inspect
import io
import re
import tokenize
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "method.md"
TEXT = DOCUMENT.read_text()
HEADER = "| symbol | meaning | name | in |"


def named_places() -> list[tuple[str, str]]:
    """Names of the symbol tables, each with the module, class or function that has it."""
    places = []
    for line in TEXT.splitlines():
        if line.startswith("| ") and line != HEADER and "---" not in line:
            *_, names, place = (cell.strip() for cell in line.strip("|").split("|"))
            places += [(name, place.strip("`")) for name in re.findall("`(.*?)`", names)]
    return places


def resolve(place: str) -> Any:
    """Import a module, or get an attribute of one."""
    parts = place.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        if (ROOT / name.replace(".", "/")).with_suffix(".py").exists():
            module: ModuleType = importlib.import_module(name)
            return reduce(getattr, parts[count:], module)
    raise ValueError(f"no module has {place}")


@pytest.mark.parametrize(("name", "place"), named_places())
def test_symbol_names_exist_in_the_code(name, place):
    tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(resolve(place)).lstrip()).readline)
    assert name in {token.string for token in tokens if token.type == tokenize.NAME}


def test_every_section_has_a_symbol_table():
    assert TEXT.count(HEADER) == len(re.findall("^## ", TEXT, re.MULTILINE)) > 1
    assert len(named_places()) > 40


def test_formulas_are_closed():
    assert TEXT.count("$$") % 2 == 0
    prose = re.sub(r"\$\$.*?\$\$", "", TEXT, flags=re.DOTALL)
    for paragraph in prose.split("\n\n"):
        assert paragraph.count("$") % 2 == 0, paragraph
