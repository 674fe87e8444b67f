"""List files and app.toml files: text to entries, each with file and line.

A bad line is data, a `Problem`: it is skipped and reported, and the rest of the list is used. A bad file (binary, another
encoding, a web page) raises `ListError`, so that its last good copy stays in force.

Nearly all lines of a large list are usual: one name and perhaps a comment, and nothing can be wrong with them. `scan` takes
those into columns, without an object each; all others go through `parse_entry` one by one.
"""

import difflib
import ipaddress
import re
from array import array
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from embargo import accelerator, checks, errors, names, toml
from embargo.errors import BadValue, ConfigError, ListError, Problem
from embargo.lists import policy
from embargo.lists.columns import EXCEPTION, SIGNS, Usual
from embargo.lists.policy import App, Entry, EntryKind, Level, List, Network, Source
from embargo.names import Name

MAX_FILE = 256 << 20  # octets; forty times the largest public list of 2026
MAX_LINE = 4096  # octets; the longest name in escapes is 1 004
MAX_PROBLEMS = 1000  # for one list; a file of another format would fill memory with them
MIN_PREFIX = {4: 8, 6: 19}  # by family: the shortest prefixes that a registry has allocated to one holder

UPSTREAM = "the upstream resolver's"  # the role of protected addresses that the agent itself asks
#: never a block entry: blocking one of these would cut the network itself, not an app. (network, what it is)
RESERVED = (
    ("0.0.0.0/8", "unspecified"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by carriers"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "for protocols"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/96", "unspecified or loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "private"),
    ("ff00::/8", "multicast"),
)

_native = accelerator.load("lists")


class Everything:
    """A container that contains everything."""

    def __contains__(self, item: object) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Guard:
    """What a block list must not contain. An allow list is checked for syntax only."""

    public_suffix: Callable[[Name], bool] | None = None
    #: names that may be public suffixes, besides top-level domains; `*.name` stands for all children of a name
    suspects: Container[Name] = Everything()
    single_registrant: frozenset[Name] = frozenset()  # public suffixes below which one registrant has everything
    protected: tuple[tuple[Network, str], ...] = ()  # the gateway's own, LAN and upstream addresses, each with its role
    prefixes: dict[int, int] = field(default_factory=lambda: MIN_PREFIX)  # by family: the shortest allowed


def parse(data: bytes, *, file: str, source: Source, guard: Guard) -> List:
    """The entries of one native list file. Raises ListError when the file as a whole cannot be one."""
    data, end = _text(data, file)
    guarded = source.level is not Level.ALLOW
    usual, unusual = scan(data, end, guard.suspects if guarded and guard.public_suffix else None)
    entries: list[Entry] = []
    problems: list[Problem] = []
    bad = 0
    for number, start, stop in unusual:
        try:
            text, evidence = _split(data[start:stop])
            if not text:
                continue
            entry = parse_entry(text, line=number, evidence=evidence)
            if not entry.exception and guarded:
                _check(entry, guard)
        except BadValue as refused:
            bad += 1
            if bad <= MAX_PROBLEMS:
                problems.append(Problem(file, number, refused.message, refused.hint))
        else:
            entries.append(entry)
    if bad > MAX_PROBLEMS:
        message = f"{bad - MAX_PROBLEMS} more lines cannot be used"
        problems.append(Problem(file, 0, message, "is this a list of another format? An entry is one name, address or network"))
    return List(source, tuple(entries), tuple(problems), file, usual, data)


#: a usual line: a lower-case name whose last label is no number, and perhaps a comment behind white space
_USUAL = re.compile(rb"[ \t]*([=!]?)((?:[a-z0-9_-]+\.)*[a-z][a-z0-9_-]*)(?:[ \t]*|[ \t]+#[^\r]*)\r?")
_EMPTY = re.compile(rb"[ \t]*(?:#[^\r]*)?\r?")


def scan(data: bytes, end: bytes, suspects: Container[Name] | None) -> tuple[Usual, list[tuple[int, int, int]]]:
    """(the usual lines, the others as (line number, first offset, end offset)). Empty lines and comments are in neither.

    `end`: the octet that ends a line. `suspects`: names that may be public suffixes, whose lines are not usual; None where
    these are not checked.
    """
    if _native:
        *columns, others = _native.scan(data, ord(end), suspects)
        return Usual(*columns), others
    blob, signs, at = bytearray(), bytearray(), 0
    starts, lines, others = array("I"), array("I"), []
    for number, line in enumerate(data.split(end), start=1):
        begin, at = at, at + len(line) + 1
        usual = _USUAL.fullmatch(line) if len(line) <= MAX_LINE else None
        if usual is None:
            if len(line) > MAX_LINE or not _EMPTY.fullmatch(line):
                others.append((number, begin, begin + len(line)))
            continue
        sign = SIGNS.index(usual[1].decode())
        try:
            name = names.from_text(usual[2].decode())
        except ValueError:
            name = None
        if name is None or (suspects is not None and sign != EXCEPTION and _suspect(name, suspects)):
            others.append((number, begin, begin + len(line)))
            continue
        starts.append(len(blob))
        lines.append(number)
        signs.append(sign)
        blob += name
    return Usual(bytes(blob), starts, lines, bytes(signs)), others


def _suspect(name: Name, suspects: Container[Name]) -> bool:
    above = name[1 + name[0] :]
    return above == names.ROOT or name in suspects or Name(b"\1*" + above) in suspects


def _shown(text: str) -> str:
    """Text as it stands in a message: quoted, without control characters, at most 80 characters."""
    return f'"{errors.printable(text if len(text) <= 80 else text[:79] + "…")}"'


def _text(data: bytes, file: str) -> tuple[bytes, bytes]:
    """(the file without its byte order mark, what ends its lines: LF, or CR in a file without LF, as editors read it)."""
    end = b"\n" if b"\n" in data else b"\r"

    def refuse(offset: int, message: str, hint: str) -> ListError:
        return ListError(Problem(file, data.count(end, 0, offset) + 1, message, hint))

    if len(data) > MAX_FILE:
        raise ListError(Problem(file, 0, f"the file has {len(data)} octets", f"a list has at most {MAX_FILE}"))
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise refuse(0, "the file is UTF-16", "save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if (zero := data.find(b"\0")) >= 0:
        raise refuse(zero, "the file is binary", "a list is UTF-8 text, one entry per line")
    if data[:512].lstrip()[:1] == b"<":
        raise refuse(0, "the file is a web page or XML", "a list is UTF-8 text, one entry per line")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        octet = data[error.start]
        raise refuse(error.start, f"octet 0x{octet:02x} is not UTF-8", "save the file as UTF-8") from None
    return data, end


def _split(raw: bytes) -> tuple[str, str]:
    """The entry and the evidence (the comment) of a line; the entry is empty in a line without one."""
    if len(raw) > MAX_LINE:
        raise BadValue(f"the line has {len(raw)} octets", f"a line has at most {MAX_LINE}")
    line = raw.decode().strip()
    text, _, evidence = line.partition("#")
    if "\r" in line:
        raise BadValue(f"{_shown(line)} has a carriage return in its middle", "end every line with LF or CRLF")
    if text and not text[-1].isspace() and evidence.startswith(_COSMETIC):
        raise BadValue(f"{_shown(line)} is an adblock rule", "write the name alone")
    return text.strip(), policy.comment(line)


_COSMETIC = ("#", "@#", "?#", "$#", "%#")  # behind the first "#" of adblock rules that hide parts of pages


def parse_entry(text: str, *, line: int = 0, evidence: str = "") -> Entry:
    """One entry as it stands in a list, without its comment. ValueError (BadValue) says what is wrong and what is right."""
    try:
        return _entry(text, line, evidence)
    except BadValue as refused:
        raise _quoting(text, refused) from None


def _quoting(text: str, refused: BadValue) -> BadValue:
    """The same with the refused text as the subject of the sentence."""
    return BadValue(f"{_shown(text)} {refused.message}", refused.hint)


def _entry(text: str, line: int, evidence: str) -> Entry:
    sign = text[:1] if text[:1] in ("!", "=") else ""
    body = text[len(sign) :].strip(" \t")
    _refuse_other_formats(sign, body)
    network = None if sign == "=" else _network(body)
    if network is not None:
        return Entry(EntryKind.NETWORK, sign == "!", Name(b""), network, line, text, evidence)
    return Entry(
        EntryKind.EXACT if sign == "=" else EntryKind.SUFFIX, sign == "!", checks.name(body), None, line, text, evidence
    )


def _refuse_other_formats(sign: str, body: str) -> None:
    """BadValue for what is neither a name nor an address at first sight, each with its own advice."""
    if not body:
        raise BadValue("has no name or address", "write !name or !address" if sign == "!" else "write a name")
    if any(c.isspace() for c in body):
        raise BadValue("is more than one word", "write one name, address or network per line, comments after #")
    checks.visible(body)
    if "://" in body:
        raise BadValue("is a URL", "write the name alone, without scheme and path")
    if body.startswith(("|", "@@")) or "^" in body or "$" in body.replace("\\$", ""):
        raise BadValue("is an adblock rule", "write the name alone; an exception is !name")
    if sign and body[0] in "!=":
        raise BadValue(
            f'begins with "{sign}{body[0]}"', "write !name or =name; !name holds for the name and every name below it"
        )
    host, colon, port = body.rpartition(":")
    if colon and port.isascii() and port.isdecimal() and ("." in host or host.endswith("]")):
        raise BadValue("has a port", "write the name or address alone: a block holds for every port")


def _network(text: str) -> Network | None:
    """The network or address in `text`, None when it is a name. Host bits and odd spellings are refused, not repaired."""
    address, slash, length = text.partition("/")
    family = 6 if ":" in address else 4
    digits = address.replace(".", "")
    if family == 4 and not (address.count(".") == 3 and digits.isascii() and digits.isdecimal()):
        if slash and digits.isascii() and digits.isdecimal():
            raise BadValue("is not a network", "write all four octets, as in 203.0.113.0/24")
        return None
    try:
        value = address_to_int(address)
    except ValueError:
        raise BadValue(f"is not an IPv{family} address", "write it as in 203.0.113.7 or 2001:db8::7") from None
    bits = 32 if family == 4 else 128
    if not slash:
        return Network(family, value, value)
    if not (length.isascii() and length.isdecimal() and len(length) <= 3 and int(length) <= bits):
        raise BadValue("has no valid prefix length", f"write /0 to /{bits}")
    size = 1 << (bits - int(length))
    if value % size:
        canonical = int_to_address(family, value - value % size)
        raise BadValue("has host bits set", f"write {canonical}/{length} or the address alone")
    return Network(family, value, value + size - 1)


def address_to_int(text: str) -> int:
    """An IPv4 or IPv6 address in its usual text form as an integer. ValueError otherwise."""
    if "%" in text:
        raise ValueError(text)
    return int(ipaddress.ip_address(text))


def int_to_address(family: int, value: int) -> str:
    """The text of an address; `family` is 4 or 6."""
    return str(ipaddress.IPv4Address(value) if family == 4 else ipaddress.IPv6Address(value))


def network_from_text(text: str) -> Network:
    """A network or address as it stands in a configuration. ValueError says what would be right."""
    try:
        network = _network(text)
        if network is None:
            raise BadValue("is not an address or network", "write it as in 203.0.113.0/24")
    except BadValue as refused:
        raise _quoting(text, refused) from None
    return network


_RESERVED = tuple((network_from_text(text), what) for text, what in RESERVED)


def _check(entry: Entry, guard: Guard) -> None:
    """BadValue for a block entry that would block more than an app."""
    try:
        _refuse_dangerous(entry, guard)
    except BadValue as refused:
        raise _quoting(entry.text, refused) from None


def _refuse_dangerous(entry: Entry, guard: Guard) -> None:
    if entry.network is None:
        if guard.public_suffix and entry.name not in guard.single_registrant and guard.public_suffix(entry.name):
            raise BadValue("is a public suffix: names below it belong to others", "write the names that are meant")
        return
    family, first, last = entry.network
    host_bits = (last - first + 1).bit_length() - 1
    prefix = (32 if family == 4 else 128) - host_bits
    if prefix < guard.prefixes[family]:
        raise BadValue("is too wide a network", f"/{guard.prefixes[family]} is the widest for IPv{family}")
    for network, role in (*_RESERVED, *guard.protected):
        if network.family == family and first <= network.last and network.first <= last:
            hint = _CARRIER_HINT if role in _CARRIERS else "blocking them would cut the network itself; remove the line"
            raise BadValue(f"covers addresses that are {role}", hint)


_CARRIERS = ("IPv4-mapped", "NAT64")
_CARRIER_HINT = "write the IPv4 address: it holds for the IPv6 forms that carry it too"


_APP_KEYS: dict[str, type] = {
    "id": str, "name": str, "operator": str, "order": str, "default": bool, "homepage": str, "summary": str,
    "neighbours": list, "single_registrant": list,
}  # fmt: skip


#: an id is part of the names of chains and counters, of a log prefix (at most 127 octets) and of a directory
_APP_ID = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def parse_app(data: bytes, file: str, directory: str) -> App:
    """An app.toml. `directory`: the name of its directory, which must be the app's id. ConfigError has all problems."""
    raw, text = toml.parse(data, file)
    problems = list(_app_problems(raw, directory))
    if problems:
        lines = toml.Lines(text)
        raise ConfigError(Problem(file, lines.at(*path), f"{path[0]}: {message}", hint) for path, message, hint in problems)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return App(**values)


def _app_problems(raw: dict[str, Any], directory: str) -> Iterator[tuple[toml.Path, str, str]]:
    """(key, what is wrong, what would be right) for everything that is wrong."""
    for key, value in raw.items():
        if key not in _APP_KEYS:
            near = difflib.get_close_matches(key, _APP_KEYS, 1)
            yield (key,), "unknown key", f'did you mean "{near[0]}"?' if near else f"the keys are {', '.join(_APP_KEYS)}"
        elif type(value) is not _APP_KEYS[key] or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            kind = {str: "a string", bool: "true or false", list: "a list of strings"}[_APP_KEYS[key]]
            yield (key,), "wrong type", f"it must be {kind}"
        elif isinstance(value, list):
            yield from _bad_names(key, value)
    for key in ("id", "name"):
        if key not in raw:
            yield (key,), "missing", "every app has an id and a name"
    if isinstance(raw.get("id"), str):
        yield from _bad_id(raw["id"], directory)


def _bad_names(key: str, value: list[str]) -> Iterator[tuple[toml.Path, str, str]]:
    for number, text in enumerate(value):
        try:
            checks.name(text)
        except BadValue as refused:
            yield (key, number), f"{_shown(text)} {refused.message}", refused.hint


def _bad_id(app: str, directory: str) -> Iterator[tuple[toml.Path, str, str]]:
    if app != directory:
        yield ("id",), _shown(app), f'it must be the name of the directory, "{directory}"'
    elif app == "local":
        yield ("id",), '"local"', "that id belongs to the administrator's own lists; choose another"
    elif not _APP_ID.fullmatch(app):
        yield ("id",), _shown(app), "an id has lower-case letters, digits, - and _, at most 64, and begins with a letter"
