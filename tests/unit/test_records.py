"""Records: encoding and decoding return the same record, and anything else raises RecordError."""

import dataclasses
import enum
import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo import daemon, records
from embargo.records import Count, Limit, RecordError, Word, decode, encode


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


class Point(NamedTuple):
    x: int
    where: Annotated[str, Limit(characters=3)]


@dataclass(frozen=True, slots=True)
class Inner:
    text: str
    octets: bytes


@dataclass(frozen=True, slots=True)
class Other:
    number: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A field of each type that the module supports."""

    VERSION: ClassVar[int] = 3

    text: str
    whole: int
    part: float
    yes: bool
    octets: bytes
    nothing: None
    word: Literal["a", "b", 1]
    colour: Colour
    level: Level
    inner: Inner
    point: Point
    many: tuple[Inner, ...]
    two: tuple[int, str]
    named: dict[str, tuple[int, ...]]
    perhaps: int | None
    either: Inner | Other
    count: Count
    short: Word
    share: Annotated[float, Limit(0.0, 1.0)]
    anything: Any


#: what json.loads may give
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field of this type, derived from the type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _within(arguments[0], arguments[1])
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin in (dict, Mapping):
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, tuple)):
        hints = typing.get_type_hints(kind, include_extras=True)
        members = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(hints)
        return st.builds(kind, **{name: values(hints[name]) for name in members})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    return _PLAIN[kind]


def _within(kind: Any, limit: Limit) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(int(limit.least), int(limit.most))
    if kind is float:
        return st.floats(float(limit.least), min(limit.most, 1e18))
    if kind is str:
        return st.text(max_size=min(limit.characters, 5)).filter(lambda text: text.isprintable() or not limit.printable)
    return values(kind)


_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=5), int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans(),
    bytes: st.binary(max_size=5), type(None): st.none(), Any: st.none() | st.lists(st.integers(), max_size=2),
}  # fmt: skip


def orders() -> list[type]:
    """All records that cross a process border."""
    found = set[type]()
    for module in pkgutil.walk_packages(daemon.__path__, "embargo.daemon."):
        if module.name.endswith(".orders"):
            members = vars(importlib.import_module(module.name)).values()
            found |= {each for each in members if dataclasses.is_dataclass(each) and isinstance(each, type)}
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


KINDS: list[Any] = [Sample, *orders()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.removeprefix('embargo.daemon.')}.{kind.__name__}")
@given(st.data())
def test_decoding_reverses_encoding(kind: Any, data: st.DataObject) -> None:
    record = data.draw(values(kind))
    found = decode(kind, json.loads(json.dumps(encode(record))))
    assert found == record
    assert repr(found) == repr(record), "the types too: 1, 1.0 and True are equal"


@given(JSON)
def test_any_value_is_a_record_or_an_error(value: Any) -> None:
    for kind in KINDS:
        try:
            found = decode(kind, value)
        except RecordError:
            continue
        assert isinstance(found, kind)


@given(values(Sample), st.data())
def test_a_changed_value_is_decoded_as_it_is_or_refused(record: Sample, data: st.DataObject) -> None:
    """An encoded record with one value, at any depth, replaced, removed or added, so that each check is reached."""
    value = encode(record)
    at = value
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    match data.draw(st.sampled_from(["replaced", "gone", "beside"])):
        case "replaced":
            at[key] = data.draw(JSON)
        case "gone":
            del at[key]
        case _ if isinstance(at, dict):
            at["beside"] = data.draw(JSON)
        case _:
            at.append(data.draw(JSON))
    try:
        found = decode(Sample, value)
    except RecordError:
        return
    assert repr(canonical(encode(found))) == repr(canonical(value)), "nothing is read as something else"


def canonical(value: Any) -> Any:
    """Hexadecimal texts as `encode` writes them, and no members that are None."""
    if isinstance(value, dict):
        return {key: canonical(each) for key, each in sorted(value.items()) if each is not None}
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    if isinstance(value, enum.Enum):
        return value.value
    try:
        return bytes.fromhex(value).hex()
    except (TypeError, ValueError):
        return value


GOOD: dict[str, Any] = encode(
    Sample(
        "t", 1, 0.5, True, b"\0\xff", None, "a", Colour.RED, Level.HIGH, Inner("i", b""), Point(1, "abc"), (Inner("m", b"m"),),
        (1, "x"), {"k": (1, 2)}, None, Other(7), 0, "word", 0.5, {"x": [1]},
    )
)  # fmt: skip


def test_the_encoding_stays_compatible() -> None:
    assert decode(Sample, GOOD).either == Other(7)
    assert {key: GOOD[key] for key in ("version", "octets", "colour", "level", "point", "two", "either")} == {
        "version": 3, "octets": "00ff", "colour": "red", "level": 1, "point": [1, "abc"], "two": [1, "x"],
        "either": {"number": 7},
    }  # fmt: skip
    assert not {"nothing", "perhaps"} & GOOD.keys(), "what is None is left out"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"version": 4}, "Sample: version 4, this program reads version 3"),
        ({"version": None}, "Sample: version None"),
        ({"version": 3.0}, "Sample: version 3.0"),
        ({"text": 1}, "Sample.text: not str"),
        ({"whole": True}, "Sample.whole: not int"),
        ({"whole": 1.0}, "Sample.whole: not int"),
        ({"part": True}, "Sample.part: not float"),
        ({"yes": 1}, "Sample.yes: not bool"),
        ({"octets": "0g"}, "Sample.octets: not hexadecimal octets"),
        ({"octets": [1]}, "Sample.octets: not hexadecimal octets"),
        ({"nothing": 0}, "Sample.nothing: not NoneType"),
        ({"word": True}, "Sample.word: not one of a, b, 1"),
        ({"colour": "green"}, "Sample.colour: not a Colour"),
        ({"colour": []}, "Sample.colour: not a Colour"),
        ({"level": True}, "Sample.level: not a Level"),
        ({"inner": {"text": "i"}}, "Sample.inner.octets: not hexadecimal octets"),
        ({"inner": {"text": "i", "octets": "", "more": 1}}, "Sample.inner: has more"),
        ({"inner": []}, "Sample.inner: not a record"),
        ({"point": [1]}, "Sample.point: not a list of 2"),
        ({"point": [1, "abcd"]}, "Sample.point: not a text of 3"),
        ({"many": {}}, "Sample.many: not a list"),
        ({"two": [1, "x", 2]}, "Sample.two: not a list of 2"),
        ({"named": []}, "Sample.named: not an object"),
        ({"named": {"k": [1, "2"]}}, "Sample.named.k: not int"),
        ({"either": {"number": "7"}}, "Sample.either: has number; .number: not int"),
        ({"count": -1}, "Sample.count: not between 0 and "),
        ({"count": 1 << 63}, "Sample.count: not between 0 and "),
        ({"short": "x" * 1001}, "Sample.short: not a text of 1000 printable characters"),
        ({"short": "a\nb"}, "Sample.short: not a text of 1000 printable characters"),
        ({"share": 1.5}, "Sample.share: not between 0.0 and 1.0"),
        ({"share": float("nan")}, "Sample.share: not between 0.0 and 1.0"),
    ],
)
def test_an_error_names_the_place_of_the_value(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=f"^{reason}"):
        decode(Sample, GOOD | changed)


def test_a_record_without_a_version_refuses_one() -> None:
    with pytest.raises(RecordError, match="version"):
        decode(Other, {"version": 1, "number": 7})


def test_a_too_deeply_nested_value_is_an_error() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (GOOD | {"version": deep}, GOOD | {"text": deep}, deep):
        with pytest.raises(RecordError):
            decode(Sample, value)


def test_an_unsupported_field_type_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Wrong:
        when: set[int]

    with pytest.raises(RecordError, match="not set"):
        records.decode(Wrong, {"when": [1]})


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, b"[" * 100_000, "", "[1", "NaN", "[-Infinity]", b"\xff", "9" * 5000],
    ids=lambda text: str(text[:9]),
)
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several classes, each with its own text
        records.from_json(text)
