"""Writes docs/configuration.md, the table in docs/events.md and the map in docs/ARCHITECTURE.md: python -m tools.docs"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from embargo import config, events

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "configuration.md"
EVENTS = TOP / "docs" / "events.md"
ARCHITECTURE = TOP / "docs" / "ARCHITECTURE.md"
PACKAGE = TOP / "agent" / "embargo"

_HEAD = """\
# Configuration

The file is `/etc/embargo/embargo.toml`, or the one given with `-c`. Every key is optional; an unknown key is an error, with a
suggestion. Changes take effect within a second, but those to `[state]`, `[metrics]`, `[dns] workers` and
`[firewall] enabled` need a restart.

This page is generated from the code by `python -m tools.docs`.

```toml
"""
_MAP = re.compile(r"(<!-- the map: python -m tools\.docs -->\n```\n).*?(```\n)", re.DOTALL)
_COLUMN = 24
_KEYS = re.compile(r"(<!-- the keys: python -m tools\.docs -->\n\n)(?:\|.*\n)+")


def page() -> str:
    return _HEAD + config.reference().rstrip() + "\n```\n"


def events_page() -> str:
    """docs/events.md with the keys of now."""
    rows = ["| key | value |", "| --- | --- |"]
    for field in events.FIELDS:
        of = ", ".join(f"`{event}`" for event in field.events.split())
        rows.append(f"| `{field.key}` | {of}{': ' if of else ''}{field.meaning} ({field.type}) |")
    table = "\n".join(rows)
    text, replaced = _KEYS.subn(lambda match: f"{match[1]}{table}\n", EVENTS.read_text())
    assert replaced == 1
    return text


def architecture() -> str:
    """docs/ARCHITECTURE.md with the current map: each folder and module with the first line of its docstring."""
    shown = "".join(f"{line}\n" for line in _folder(PACKAGE, 0))
    text, found = _MAP.subn(lambda match: f"{match[1]}{shown}{match[2]}", ARCHITECTURE.read_text())
    assert found == 1
    return text


def _folder(folder: Path, depth: int) -> Iterator[str]:
    yield _row(
        f"{folder.relative_to(PACKAGE.parent)}/" if not depth else f"{folder.name}/", depth, _says(folder / "__init__.py")
    )
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and any(path.glob("*.py")):
            yield from _folder(path, depth + 1)
        elif path.suffix in (".py", ".pyx") and not path.name.startswith("__"):
            yield _row(path.name, depth + 1, _says(path))


def _row(name: str, depth: int, says: str) -> str:
    return f"{'  ' * depth}{name}".ljust(_COLUMN) + says


def _says(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    text = path.read_text()
    if path.suffix == ".pyx":
        found = re.search(r'^"""(.*)', text, re.MULTILINE)
        line = found[1] if found else ""
    else:
        line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return line.removesuffix('"""').rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(page())
    EVENTS.write_text(events_page())
    ARCHITECTURE.write_text(architecture())
