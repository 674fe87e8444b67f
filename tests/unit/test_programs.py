"""Programs that tests and tools keep as text, and units that systemd starts: every module that they name exists."""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent.parent
IMPORT = re.compile(r"\bfrom (embargo[\w.]*) import ([\w, ]+)")
STARTED = re.compile(r"-m (embargo\.[\w.]+)|^(embargo\.(?:daemon|cli)\.[\w.]+\w)$")


def texts(path: Path) -> Iterator[str]:
    """The strings of a Python file; any other file whole."""
    if path.suffix != ".py":
        yield path.read_text()
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named(text: str) -> Iterator[tuple[str, str]]:
    """(module, name in it) of each import, and (module, "") of what `python -m` starts."""
    for module, members in IMPORT.findall(text):
        yield from ((module, member.split()[0]) for member in members.split(",") if member.strip())
    yield from (("".join(found), "") for found in STARTED.findall(text))


SAMPLES = (Path(__file__).name, "test_layering.py")  # imports in them are examples, allowed or not
FILES = [*TOP.glob("tests/**/*.py"), *TOP.glob("tools/**/*.py"), *TOP.glob("systemd/*"), *TOP.glob("tools/debian/*")]
NAMED = sorted({each for path in FILES if path.name not in SAMPLES for text in texts(path) for each in named(text)})


@pytest.mark.parametrize(("module", "member"), NAMED)
def test_what_a_program_in_a_text_imports_exists(module: str, member: str) -> None:
    if member and not hasattr(importlib.import_module(module), member):
        importlib.import_module(f"{module}.{member}")
    elif not member:
        assert importlib.util.find_spec(module) is not None


def test_such_programs_are_found() -> None:
    assert len(NAMED) > 10
    assert list(named("x\nfrom embargo.a import b, c as d\npython3 -P -m embargo.e.f g")) == [
        ("embargo.a", "b"), ("embargo.a", "c"), ("embargo.e.f", ""),
    ]  # fmt: skip
