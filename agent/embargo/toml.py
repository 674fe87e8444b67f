"""TOML text → values, and the line number of each.

tomllib does not report the lines of values, and an error message needs one. A text that tomllib accepted is therefore scanned a
second time. The scan does not validate: it splits the text into statements at line ends outside strings and brackets, and uses
tomllib to read each key.
"""

import re
import tomllib
from typing import Any

from embargo.errors import ConfigError, Problem

Path = tuple[str | int, ...]  # ("dns", "listen", 1): keys, and the index of a list item

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # the content of a multi-line string may end with two quotes
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[\]{}=,\n]"
    r"|[^\"'#\[\]{}=,\n]+",
    re.DOTALL,
)


_FORM = 'a line is [section] or key = value, with text in "quotes"'


def parse(data: bytes, file: str) -> tuple[dict[str, Any], str]:
    """(values, decoded text) of a file. Raises ConfigError, and nothing else."""
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(file, line, "not UTF-8", "save the file as UTF-8")]) from None
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_not_toml(file, text, str(error))]) from None
    except ValueError:  # an integer of more than 4,300 digits
        raise ConfigError([Problem(file, 0, "a number is too long", "it may have at most 4300 digits")]) from None
    except RecursionError:
        raise ConfigError([Problem(file, 0, "brackets are nested too deeply", "no key needs more than two levels")]) from None


def _not_toml(file: str, text: str, message: str) -> Problem:
    what, _, place = message.rpartition(" (at ")
    number = place.removeprefix("line ").partition(",")[0]
    line = int(number) if number.isdecimal() else text.rstrip("\n").count("\n") + 1
    return Problem(file, line, f"not valid TOML: {what[:1].lower()}{what[1:]}", _FORM)


class Lines:
    """The line numbers of the values in a text that `parse` accepted."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        _Walk(self._lines).run(text)

    def at(self, *path: str | int) -> int:
        """The line of a value, else of the table or list that contains it, else 0."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)


class _Walk:
    """One pass over the tokens. A statement is a `[table]` or a `key = value`, and may span several lines."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self._lines = lines
        self._line = 1
        self._table: Path = ()
        self._begin()

    def _begin(self) -> None:
        self._words = ""  # the text before "="
        self._path: Path | None = None  # the key of the current value
        self._depth = 0
        self._item = 0
        self._waits = False  # whether the next token starts a list item

    def run(self, text: str) -> None:
        for match in _TOKEN.finditer(text.replace("\r\n", "\n") + "\n"):
            token = match[0]
            if token == "\n" and not self._depth:
                self._end_of_statement()
            elif token[0] != "#":
                self._header_or_key(token) if self._path is None else self._value(token)
            self._line += token.count("\n")

    def _end_of_statement(self) -> None:
        if self._path is None and self._words.strip():
            self._table = _keys(self._words)
            self._mark(self._table)
        self._begin()

    def _header_or_key(self, token: str) -> None:
        if token != "=":
            self._words += token
            return
        self._path = (*self._table, *_keys(f"{self._words} = 0"))
        self._mark(self._path)

    def _mark(self, path: Path) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], self._line)

    def _value(self, token: str) -> None:
        if token in ("[", "{"):
            self._depth += 1
            self._waits = self._waits or (token == "[" and self._depth == 1)
            if self._depth == 1:
                return
        elif token in ("]", "}"):
            self._depth -= 1
        if self._waits and not token.isspace():
            self._waits = False
            assert self._path is not None
            self._lines.setdefault((*self._path, self._item), self._line)
        if token == "," and self._depth == 1:
            self._item += 1
            self._waits = True


def _keys(statement: str) -> Path:
    """The keys of `[a.b]`, `[[a.b]]` or `a.b = 0`, outermost first."""
    value: Any = tomllib.loads(statement)
    path: list[str] = []
    while isinstance(value, dict) and value:
        path.append(next(iter(value)))
        value = value[path[-1]]
    return tuple(path)
