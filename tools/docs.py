"""Writes the generated pages of docs/, and the generated parts of others: python -m tools.docs"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embargo import config, events, report
from embargo.daemon.ask import orders

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "configuration.md"
EVENTS = TOP / "docs" / "events.md"
STATUS = TOP / "docs" / "status.md"
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
_STATUS_HEAD = """\
# embargo status

`embargo status` shows the state of the running agent as text, `embargo status --json` as one JSON object.
Exit status: 0, or 1 if no agent runs. The text may change; the keys below are stable, and new ones may be added.

| word | meaning |
| --- | --- |
| generation | the numbered result of one compilation of the lists; every event names the generation that decided |
| names | entries that are domain names. Each covers the names below it too, unless it begins with `=` |
| networks | entries that are addresses or networks |
| names and networks blocked | those in lists of functions that are on. A name in two such lists is counted twice in their sum |
| names and networks in all lists | what is listed at all, blocked or not: each name once, overlapping networks as one range |
| shared entries | names and networks that other services use too. They are counted as blocked only with `[policy] shared` |
| inactive | a function that is on and has no effect, with the setting that is the reason |
| attempt | a blocked query, or a rejected packet or connection, of a client. Counted since the start of the agent |
| learnt addresses | addresses in no list, to which blocked names lead (`[firewall] learn`) |
| problems | lines of lists that cannot be used; a rollback is named here too |
| not covered | what the present configuration leaves open |

"""
_STATUS_RECORDS = (
    orders.Status, orders.ReloadStatus, orders.PauseStatus, orders.ListStatus, orders.AppStatus, orders.FunctionStatus,
    orders.FirewallStatus, report.Learning, report.Spared, report.UpstreamStats, orders.EventsStatus,
)  # fmt: skip
_MAP = re.compile(r"(<!-- the map: python -m tools\.docs -->\n```\n).*?(```\n)", re.DOTALL)
_COLUMN = 24
_KEYS = re.compile(r"(<!-- the keys: python -m tools\.docs -->\n\n)(?:\|.*\n)+")


def page() -> str:
    return _HEAD + config.reference().rstrip() + "\n```\n"


def status_page() -> str:
    """docs/status.md: the keys of `embargo status --json`, from the records and the comments beside their members."""
    holders = {kind: list(_holders(kind)) for kind in _STATUS_RECORDS[1:]}
    sections = [_keys("## Keys of the answer", _STATUS_RECORDS[0])]
    sections += [_keys(f"## Keys of {', '.join(f'`{key}`' for key in holders[kind])}", kind) for kind in _STATUS_RECORDS[1:]]
    return _STATUS_HEAD + "This page is generated from the code by `python -m tools.docs`.\n\n" + "\n".join(sections)


def _holders(kind: type) -> Iterator[str]:
    """The keys whose values are such records."""
    for holder in _STATUS_RECORDS:
        for field in dataclasses.fields(holder):
            if re.search(rf"\b{kind.__name__}\b", str(field.type)):
                yield field.name


def _keys(title: str, kind: type) -> str:
    meanings = comments(kind)
    rows = [f"| `{field.name}` | {meanings[field.name]} |" for field in dataclasses.fields(kind)]
    return "\n".join([title, "", inspect.getdoc(kind) or "", "", "| key | value |", "| --- | --- |", *rows, ""])


def comments(kind: Any) -> dict[str, str]:
    """The comment beside each member of a record, those of its base classes included. Empty where there is none."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if isinstance(base, type) and dataclasses.is_dataclass(base):
            for name, text in re.findall(r"^    (\w+): [^#\n]*(?:# (.*))?$", inspect.getsource(base), re.MULTILINE):
                found[name] = text.strip() or found.get(name, "")
    return found


def events_page() -> str:
    """docs/events.md with the keys of now."""
    values: dict[str, list[str]] = {}
    for field in events.FIELDS:
        of = ", ".join(f"`{event}`" for event in field.events.split())
        values.setdefault(field.key, []).append(f"{of}{': ' if of else ''}{field.meaning} ({field.type})")
    table = "\n".join(
        ["| key | value |", "| --- | --- |", *(f"| `{key}` | {'; '.join(each)} |" for key, each in values.items())]
    )
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
    STATUS.write_text(status_page())
    ARCHITECTURE.write_text(architecture())
