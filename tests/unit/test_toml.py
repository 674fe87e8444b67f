"""TOML: the line of every value, and every way a text is none."""

import tomllib

import pytest

from embargo import toml
from embargo.errors import ConfigError
from embargo.toml import Lines

TEXT = '''\
# a comment with listen = 5 and [brackets
top = 1

[dns]   # the section
listen = ["127.0.0.1:53", # first = 1
          "[::1]:53"]
"allow_from" = [
  "local",
  # "192.0.2.0/24",
  '198.51.100.0/24',

  "203.0.113.0/24" ]
forward = { "corp.example" = ["192.0.2.10",
   "192.0.2.11"], b = [] }
text = """
[not.a.section]
not_a_key = 1 ""\\" """""
raw = \'\'\'
[neither]
\'\'\'
"odd \\"key\\" = [" = "a # b = c"
a.b.c = 7
nested = [[1, 2],
  [3, [4,
  5]], 6]
empty = []
dated = 1979-05-27T07:32:00Z
after = true

[ "firewall" . 'lan' ]
x=1
[[many]]
y = 1
[[many]]
y = 2
[last]
z = 1'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("dns",), 4),
        (("dns", "listen"), 5),
        (("dns", "listen", 0), 5),
        (("dns", "listen", 1), 6),
        (("dns", "allow_from"), 7),
        (("dns", "allow_from", 0), 8),
        (("dns", "allow_from", 1), 10),
        (("dns", "allow_from", 2), 12),
        (("dns", "forward"), 13),
        (("dns", "forward", "corp.example"), 13),
        (("dns", "text"), 15),
        (("dns", "raw"), 18),
        (("dns", 'odd "key" = ['), 21),
        (("dns", "a", "b", "c"), 22),
        (("dns", "nested", 0), 23),
        (("dns", "nested", 1), 24),
        (("dns", "nested", 2), 25),
        (("dns", "empty"), 26),
        (("dns", "dated"), 27),
        (("dns", "after"), 28),
        (("firewall", "lan"), 30),
        (("firewall", "lan", "x"), 31),
        (("many",), 32),
        (("last", "z"), 37),
    ],
)
def test_every_value_has_its_line(path: toml.Path, line: int) -> None:
    tomllib.loads(TEXT)
    assert Lines(TEXT).at(*path) == line
    assert Lines(TEXT.replace("\n", "\r\n")).at(*path) == line


def test_a_value_without_its_own_line_has_the_line_of_its_container() -> None:
    lines = Lines(TEXT)
    assert lines.at("dns", "nobody", 3) == 4
    assert lines.at("dns", "top") == 4
    assert lines.at("nobody", "listen") == 0
    assert lines.at() == 0
    assert Lines("").at("dns") == 0


def test_text_inside_a_value_is_not_taken_for_a_key() -> None:
    lines = Lines(TEXT)
    assert lines.at("not") == lines.at("neither") == lines.at("listen") == 0
    assert lines.at("dns", "not_a_key") == 4


def test_values_and_text_are_given_without_the_byte_order_mark() -> None:
    assert toml.parse(b"\xef\xbb\xbfa = 1\r\n", "f") == ({"a": 1}, "a = 1\r\n")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a = \n", "f:1: not valid TOML: invalid value, a line is [section] or key = value, with text in \"quotes\""),
        (b"a = 1\n\nb\n", "f:3: not valid TOML: expected '=' after a key in a key/value pair, a line is "),
        (b"a = 1\na = 2\n\n\n", "f:2: not valid TOML: cannot overwrite a value, a line is "),
        (b'a = "(at line 9, x)"\na = 2', "f:2: not valid TOML: cannot overwrite a value, a line is "),
        (b"[a]\n[a]\n", "f:2: not valid TOML: cannot declare ('a',) twice, a line is "),
        (b"a = 'x", "f:1: not valid TOML: "),
        (b"a = 1\n\xff", "f:2: not UTF-8, save the file as UTF-8"),
        ("a = 1".encode("utf-16"), "f:1: not UTF-8, save the file as UTF-8"),
        (b"a = 1\0", "f:1: not valid TOML: "),
        (b"a = " + b"9" * 4301, "f: a number is too long, it may have at most 4300 digits"),
        (b"a = " + b"[" * 9999, "f: brackets are nested too deeply, no key needs more than two levels"),
        (b"a = " + b"{a = " * 9999, "f: brackets are nested too deeply, no key needs more than two levels"),
    ],
    ids=[
        "no value", "no key", "twice", "twice, odd text", "section twice", "open string", "latin-1", "utf-16", "nul", "digits",
        "brackets", "braces",
    ],
)  # fmt: skip
def test_invalid_toml_is_reported_with_its_line(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toml.parse(data, "f")
    (problem,) = caught.value.problems
    assert str(problem).startswith(said)
    assert problem.hint
