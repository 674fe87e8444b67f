"""Apps and lists from a few lines of text, as the tests of the core want them: no files."""

from collections.abc import Mapping, Sequence

from embargo.lists import lists
from embargo.lists.lists import Guard
from embargo.lists.policy import App, Level, List, Source


def app_list(path: str, *lines: str) -> List:
    """`alipay/payment.list` or `alipay/core.shared.list` with these lines, which are good ones."""
    app, _, file = path.partition("/")
    function, _, shared = file.removesuffix(".list").partition(".")
    return parsed(Source(path, Level.APPS, app, function, shared == "shared"), lines)


def local(level: Level, *lines: str, path: str = "") -> List:
    function = level.name.lower()
    return parsed(Source(path or f"{function}.list", level, "local", function, False), lines)


def parsed(source: Source, lines: Sequence[str]) -> List:
    found = lists.parse("\n".join(lines).encode(), file=source.path, source=source, guard=Guard())
    assert not found.problems, found.problems
    return found


def apps(files: Mapping[str, Sequence[str]], default: Sequence[str] = ()) -> tuple[App, ...]:
    """The apps of a catalogue, sorted by id as the daemon has them: path of a list → its lines."""
    by_app: dict[str, list[List]] = {}
    for path in sorted(files):
        by_app.setdefault(path.partition("/")[0], []).append(app_list(path, *files[path]))
    return tuple(App(app, app, default=app in default, lists=tuple(found)) for app, found in sorted(by_app.items()))
