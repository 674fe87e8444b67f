"""TOML: lines, for any text."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from embargo import toml
from embargo.errors import ConfigError
from embargo.toml import Lines

KEYS = st.sampled_from(["a", "b", '"c d"', "'e=f'", "a.b", '"g\\""'])
VALUES = st.recursive(
    st.sampled_from(["1", "true", '"x"', "'[y'", '"""\nk = 1\n"""', "'''\n'''", '"#"', '"\\\\"']),
    lambda inner: st.lists(inner | inner.map("\n{}".format) | inner.map("# c = [\n{}".format), max_size=3).map(
        lambda items: f"[{', '.join(items)}]"
    ),
    max_leaves=6,
)
STATEMENTS = st.one_of(
    st.tuples(KEYS, VALUES).map(" = ".join),
    KEYS.map("[{}]".format),
    KEYS.map("[[{}]] # x".format),
    st.just("# [a]"),
    st.just(""),
)


@given(st.lists(STATEMENTS, max_size=8))
def test_the_first_line_that_makes_a_key_known_is_its_line(statements: list[str]) -> None:
    """An oracle without a walk: cut the text behind each statement and see which keys tomllib finds."""
    text = "\n".join(statements)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = Lines(text)
    known: set[toml.Path] = set()
    start = 1
    for number, statement in enumerate(statements, start=1):
        now = set(paths(tomllib.loads("\n".join(statements[:number]))))
        assert {lines.at(*path) for path in now - known} <= {start}
        known = now
        start += 1 + statement.count("\n")


def paths(value: object, above: toml.Path = ()) -> list[toml.Path]:
    if not isinstance(value, dict):
        return []
    return [path for key, inner in value.items() for path in [(*above, key), *paths(inner, (*above, key))]]


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_any_octets_are_values_or_a_config_error(data: bytes) -> None:
    try:
        _, text = toml.parse(data, "f")
    except ConfigError:
        return
    Lines(text)
