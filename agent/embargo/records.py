"""Records that cross a process border: frozen dataclasses, encoded as JSON values and decoded with all types checked.

`encode` returns a value for `json.dumps`. `decode` reads such a value back; for any other input it raises RecordError and no
other exception. The type of a field describes its encoding: str, int, float, bool, bytes (hexadecimal), None, Literal, an Enum
(by value), another record, a NamedTuple (as a list), tuple[X, ...], tuple[X, Y], dict[str, X], and unions of these. Further
bounds are given by `Annotated[…, Limit(…)]`, since the sender may be an unprivileged process that is compromised.

A member that is None is omitted, and a missing one is read as None. A record that is stored on disk has a VERSION: its encoding
includes it, and decoding refuses any other version.
"""

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from embargo.errors import EmbargoError

R = TypeVar("R")

MAX_NAMES = 200  # characters of unknown member names in an error message

#: decodes a JSON value of one type. The text of its RecordError begins with a place: ".upstreams.asked: not int"
_Decoder = Callable[[Any], Any]

_AS_IT_IS = {str, int, float, bool, type(None)}


Answer = TypeVar("Answer")


class Order(Generic[Answer]):
    """A request to another process. The answer to an `Order[Counted]` is a record of type Counted."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to an order that was carried out, without a result."""


def answer_of(order: type) -> type:
    """The type of the answer to an order of this type."""
    for base in order.__orig_bases__:  # type: ignore[attr-defined] # typing sets it on each subclass of Order[…]
        if arguments := get_args(base):
            kind: type = arguments[0]
            return kind
    raise TypeError(f"{order.__name__} does not declare the type of its answer")


class RecordError(EmbargoError):
    """A received value is not a valid record. The receiver treats its sender as faulty."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds of a value: a number from `least` to `most`; a text of at most `characters`, all printable if `printable`."""

    least: float = -(1 << 63)
    most: float = (1 << 63) - 1
    characters: int = 1 << 30
    printable: bool = False

    def check(self, value: Any) -> None:
        """RecordError if the value is out of bounds."""
        if isinstance(value, str):
            if len(value) > self.characters or (self.printable and not value.isprintable()):
                raise RecordError(f": not a text of {self.characters} printable characters at most")
        elif isinstance(value, int | float) and not self.least <= value <= self.most:
            raise RecordError(f": not between {self.least} and {self.most}")


#: for counters of an unprivileged process, and their names
Count = Annotated[int, Limit(least=0)]
Word = Annotated[str, Limit(characters=1000, printable=True)]


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_json = json.JSONDecoder(parse_constant=_no_constant)  # Infinity and NaN are no JSON (RFC 8259 section 6)


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. ValueError for anything else, and for one that is nested too deeply for the parser.

    The only reader of JSON in this program: json.loads raises RecursionError, which is no ValueError, for 1,000 brackets.
    """
    try:
        return _json.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(record: Any) -> Any:
    """The JSON value of a record, or of any value that a record may have."""
    kind = type(record)
    return record if kind in _AS_IT_IS else _encoder(cast(Hashable, kind))(record)


@cache
def _encoder(kind: Any) -> Callable[[Any], Any]:
    """What encodes values of this type; worked out once for each."""
    if dataclasses.is_dataclass(kind):
        return _record_encoder(kind)
    if issubclass(kind, enum.Enum):
        return lambda value: value.value
    if issubclass(kind, dict):
        return lambda value: {key: encode(member) for key, member in value.items()}
    if issubclass(kind, list | tuple):
        return lambda value: [encode(member) for member in value]
    return bytes.hex if issubclass(kind, bytes) else lambda value: value


def _record_encoder(kind: Any) -> Callable[[Any], Any]:
    names, version = [field.name for field in dataclasses.fields(kind)], getattr(kind, "VERSION", None)
    head = {} if version is None else {"version": version}

    def write(record: Any) -> Any:
        value = head.copy()
        for name in names:
            if (member := getattr(record, name)) is not None:
                value[name] = encode(member)
        return value

    return write


def decode(kind: type[R], value: Any) -> R:
    """The record of type `kind` that `encode` encoded as this value. RecordError if there is none."""
    return cast(R, _decoded(kind, _decoder(cast(Hashable, kind)), value))


def _decoded(kind: type, decoder: _Decoder, value: Any) -> Any:
    try:
        return decoder(value)
    except RecordError as error:
        raise RecordError(f"{kind.__name__}{error}") from None
    except RecursionError:
        raise RecordError(f"{kind.__name__}: nested too deeply") from None


def tagged(record: Any) -> dict[str, Any]:
    """A record as a JSON object with the name of its type in the member `op`."""
    value: dict[str, Any] = encode(record)
    value["op"] = type(record).__name__
    return value


def untagged(kinds: Mapping[str, type], value: Any) -> Any:
    """The record that `tagged` encoded as this object, if its type is one of `kinds`, by name. RecordError otherwise."""
    if not isinstance(value, dict) or not isinstance(name := value.get("op"), str) or (kind := kinds.get(name)) is None:
        raise RecordError(f"none of {', '.join(kinds)}")
    return _decoded(kind, _tagged_decoder(kind), value)


def widened(kind: type[R], record: Any, **members: Any) -> R:
    """A record of type `kind` with all members of another record, and these additional ones."""
    return kind(**{field.name: getattr(record, field.name) for field in dataclasses.fields(record)} | members)


def by_name(kinds: Iterable[type]) -> dict[str, type]:
    """name → type, for `untagged`."""
    return {kind.__name__: kind for kind in kinds}


@cache
def _decoder(kind: Any) -> _Decoder:
    origin = get_origin(kind)
    if origin is Annotated:
        return _limited(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind))
    if origin is Literal:
        return _literal(get_args(kind))
    if origin is tuple:
        return _sequence(get_args(kind)) if get_args(kind)[1:] == (...,) else _fixed(get_args(kind), tuple)
    if origin in (dict, Mapping):
        return _mapping(*get_args(kind))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _record(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind)
    if isinstance(kind, type) and issubclass(kind, tuple):
        hints = typing.get_type_hints(kind, include_extras=True)
        return _fixed(tuple(hints.values()), lambda values: kind(*values))
    if kind is bytes:
        return _octets
    if kind is Any:
        return lambda value: value
    return _plain(kind)


@cache
def _tagged_decoder(kind: type) -> _Decoder:
    return _record(kind, {"op"})


def _record(kind: type, other: Iterable[str] = ()) -> _Decoder:
    """`other`: further members that an object may have."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [(field.name, _decoder(hints[field.name])) for field in dataclasses.fields(kind)]
    version = getattr(kind, "VERSION", None)
    names = {name for name, _ in fields}.union(other, ["version"] if version is not None else [])

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise RecordError(": not a record")
        if version is not None and not _same(value.get("version"), version):
            raise RecordError(f": version {value.get('version')}, this program reads version {version}")
        if not value.keys() <= names:
            raise RecordError(f": has {', '.join(sorted(map(str, value.keys() - names)))[:MAX_NAMES]}")
        name, members = "", []
        try:
            for name, decoder in fields:
                members.append(decoder(value.get(name)))
        except RecordError as error:
            raise RecordError(f".{name}{error}") from None
        return kind(*members)

    return read


def _same(value: Any, wanted: Any) -> bool:
    """Equal and of the same type, since 1 == 1.0 == True."""
    return type(value) is type(wanted) and bool(value == wanted)


def _plain(kind: type) -> _Decoder:
    accepted = {int, float} if kind is float else {kind}

    def read(value: Any) -> Any:
        if type(value) not in accepted:
            raise RecordError(f": not {kind.__name__}")
        return value

    return read


def _limited(kind: Any) -> _Decoder:
    inner, *limits = get_args(kind)
    decoder = _decoder(inner)

    def read(value: Any) -> Any:
        found = decoder(value)
        for limit in limits:
            limit.check(found)
        return found

    return read


def _union(kinds: tuple[Any, ...]) -> _Decoder:
    decoders = [_decoder(kind) for kind in kinds]

    def read(value: Any) -> Any:
        reasons = []
        for decoder in decoders:
            try:
                return decoder(value)
            except RecordError as error:
                reasons.append(str(error).removeprefix(": "))
        raise RecordError(f": {'; '.join(reasons)}")

    return read


def _literal(values: tuple[Any, ...]) -> _Decoder:
    def read(value: Any) -> Any:
        if not any(_same(value, each) for each in values):
            raise RecordError(f": not one of {', '.join(map(str, values))}")
        return value

    return read


def _member(kind: type[enum.Enum]) -> _Decoder:
    def read(value: Any) -> Any:
        for each in kind:
            if _same(value, each.value):
                return each
        raise RecordError(f": not a {kind.__name__}")

    return read


def _sequence(kinds: tuple[Any, ...]) -> _Decoder:
    decoder = _decoder(kinds[0])

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise RecordError(": not a list")
        return tuple([decoder(each) for each in value])

    return read


def _fixed(kinds: tuple[Any, ...], make: Callable[[Any], Any]) -> _Decoder:
    decoders = [_decoder(kind) for kind in kinds]

    def read(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(decoders):
            raise RecordError(f": not a list of {len(decoders)}")
        return make([decoder(each) for decoder, each in zip(decoders, value, strict=True)])

    return read


def _mapping(key_kind: Any, kind: Any) -> _Decoder:
    key_decoder, decoder = _decoder(key_kind), _decoder(kind)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise RecordError(": not an object")
        key, members = "", {}
        try:
            for key, member in value.items():
                members[key_decoder(key)] = decoder(member)
        except RecordError as error:
            raise RecordError(f".{key}{error}") from None
        return members

    return read


def _octets(value: Any) -> bytes:
    try:
        return bytes.fromhex(value)
    except (ValueError, TypeError):
        raise RecordError(": not hexadecimal octets") from None
