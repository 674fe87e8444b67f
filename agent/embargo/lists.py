"""List text → entries, with file and line.

A bad line is data, a `Problem`: it is skipped and reported and never costs the list. A bad file (binary, another encoding,
a web page) raises `ListError`, because its last good copy must stay in force.
"""

import ipaddress
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from embargo import names
from embargo.errors import ConfigError, ListError, Problem
from embargo.names import Name
from embargo.policy import App, Entry, Kind, Level, List, Network, Source

MAX_FILE = 256 << 20  # octets; forty times the largest public list of today
MAX_LINE = 4096  # octets; the longest name in escapes is 1 004
MIN_PREFIX = {4: 8, 6: 19}  # the shortest prefixes a registry ever gave to one holder

# Never a block entry: blocking one of these cuts the network itself, not an app. (network, what it is)
SPECIAL = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by carriers"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.168.0.0/16", "private"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/96", "unspecified or loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("64:ff9b::/96", "NAT64"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)


def _no_public_suffix(_: Name) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Guard:
    """What a block list must not contain. An allow list is bound by syntax only."""

    public_suffix: Callable[[Name], bool] = _no_public_suffix
    single_registrant: frozenset[Name] = frozenset()
    protected: tuple[tuple[Network, str], ...] = ()  # the gateway's own, LAN and upstream addresses, each with its role
    prefixes: dict[int, int] = field(default_factory=lambda: MIN_PREFIX)


def parse(data: bytes, *, file: str, source: Source, guard: Guard) -> List:
    """The entries of one native list file. Raises ListError when the file as a whole cannot be one."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, raw in enumerate(_lines(data, file), start=1):
        if len(raw) > MAX_LINE:
            message = f"the line has {len(raw)} octets"
            problems.append(Problem(file, number, message, f"a line has at most {MAX_LINE}"))
            continue
        text, _, evidence = raw.decode().partition("#")
        text = text.strip()
        if not text:
            continue
        try:
            entry = parse_entry(text, line=number, evidence=evidence.strip())
            if not entry.exception and source.level is not Level.ALLOW:
                _check(entry, guard)
        except _Refused as refused:
            problems.append(Problem(file, number, f'"{_printable(text)}" {refused.message}', refused.hint))
        else:
            entries.append(entry)
    return List(source, tuple(entries), tuple(problems), file)


class _Refused(ValueError):
    def __init__(self, message: str, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}, {hint}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:80])


def _lines(data: bytes, file: str) -> list[bytes]:
    def refuse(line: int, message: str, hint: str) -> ListError:
        return ListError(Problem(file, line, message, hint))

    if len(data) > MAX_FILE:
        raise refuse(0, f"the file has {len(data)} octets", f"a list has at most {MAX_FILE}")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise refuse(1, "the file is UTF-16", "save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if (zero := data.find(b"\0")) >= 0:
        raise refuse(data.count(b"\n", 0, zero) + 1, "the file is binary", "a list is text, one entry a line")
    if data[:512].lstrip()[:1] == b"<":
        raise refuse(1, "the file is a web page or XML", "a list is text, one entry a line")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse(line, f"octet 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8") from None
    return data.splitlines()


def parse_entry(text: str, *, line: int = 0, evidence: str = "") -> Entry:
    """One entry as it stands in a list, without its comment. Raises ValueError with what is wrong and what is right."""
    exception = text.startswith("!")
    body = text[1:].strip() if exception else text
    if not body:
        raise _Refused("has no name or address", "write !name or !address")
    if "://" in body:
        raise _Refused("is a URL", "write the name alone, without scheme or path")
    if not exception and body.startswith("="):
        return Entry(Kind.EXACT, False, _name(body[1:].strip()), None, line, text, evidence)
    if (network := _network(body)) is not None:
        return Entry(Kind.NETWORK, exception, Name(b""), network, line, text, evidence)
    return Entry(Kind.SUFFIX, exception, _name(body), None, line, text, evidence)


def _name(text: str) -> Name:
    if any(c.isspace() for c in text):
        raise _Refused("is more than one word", "write one name, address or network a line")
    if not text.isprintable():
        raise _Refused("has a character that cannot be printed", "write octets outside ASCII text as \\DDD")
    if "/" in text:
        raise _Refused("is not a name, address or network", "write the name alone, without a path")
    if "*" in text:
        raise _Refused("has a wildcard", "a name already covers every name below it; write it without '*.'")
    if text.startswith("||") or text.endswith("^"):
        raise _Refused("is an adblock rule", "write the name alone")
    try:
        name = names.from_text(text)
    except ValueError as error:
        raise _Refused("is not a domain name", str(error)) from None
    if name == names.ROOT:
        raise _Refused("is the root of all names", "write the name that is meant")
    return name


def _network(text: str) -> Network | None:
    """The network in `text`, None when it is a name. Host bits and odd spellings are refused, not repaired."""
    address, slash, length = text.partition("/")
    family = 6 if ":" in address else 4
    digits = address.replace(".", "")
    if family == 4 and not (address.count(".") == 3 and digits.isascii() and digits.isdecimal()):
        if slash and digits.isascii() and digits.isdecimal():
            raise _Refused("is not a network", "write all four octets, as in 203.0.113.0/24")
        return None
    try:
        value = address_to_int(address)
    except ValueError:
        raise _Refused(f"is not an IPv{family} address", "write it as in 203.0.113.7 or 2001:db8::7") from None
    bits = 32 if family == 4 else 128
    if not slash:
        return Network(family, value, value)
    if not (length.isascii() and length.isdecimal() and len(length) <= 3 and int(length) <= bits):
        raise _Refused("has no valid prefix length", f"write /0 to /{bits}")
    size = 1 << (bits - int(length))
    if value % size:
        canonical = int_to_address(family, value - value % size)
        raise _Refused("has host bits set", f"write {canonical}/{length} or the address alone")
    return Network(family, value, value + size - 1)


def address_to_int(text: str) -> int:
    """An address in its usual text form as an integer. ValueError otherwise."""
    if "%" in text:
        raise ValueError(text)
    return int(ipaddress.ip_address(text))


def int_to_address(family: int, value: int) -> str:
    return str(ipaddress.IPv4Address(value) if family == 4 else ipaddress.IPv6Address(value))


def network_from_text(text: str) -> Network:
    """A network or address written in a configuration. ValueError says what would be right."""
    network = _network(text)
    if network is None:
        raise _Refused("is not an address or network", "write it as in 203.0.113.0/24")
    return network


_SPECIAL = tuple((network_from_text(text), what) for text, what in SPECIAL)


def _check(entry: Entry, guard: Guard) -> None:
    if entry.network is None:
        if entry.name not in guard.single_registrant and guard.public_suffix(entry.name):
            raise _Refused("is a public suffix: names below it belong to others", "write the names that are meant")
        return
    family, first, last = entry.network
    size = (last - first + 1).bit_length() - 1
    bits = 32 if family == 4 else 128
    if bits - size < guard.prefixes[family]:
        raise _Refused("is too wide a network", f"/{guard.prefixes[family]} is the widest for IPv{family}")
    for network, role in (*_SPECIAL, *guard.protected):
        if network.family == family and first <= network.last and network.first <= last:
            raise _Refused(f"covers addresses that are {role}", "blocking them would cut the network itself; remove the line")


_APP_KEYS: dict[str, type] = {
    "id": str, "name": str, "operator": str, "order": str, "default": bool, "homepage": str, "summary": str,
    "neighbours": list, "single_registrant": list,
}  # fmt: skip


def parse_app(data: bytes, file: str, directory: str) -> App:
    """An app.toml. `directory` is the name of the directory it stands in, which must be the app's id."""
    try:
        raw: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([Problem(file, 0, f"it is not TOML: {error}", "see embargo-lists(5)")]) from None
    problems = list(_app_problems(raw, file, directory))
    if problems:
        raise ConfigError(problems)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return App(**values)


def _app_problems(raw: dict[str, Any], file: str, directory: str) -> Iterable[Problem]:
    for key, value in raw.items():
        if key not in _APP_KEYS:
            yield Problem(file, 0, f"{key}: unknown key", f"the keys are {', '.join(_APP_KEYS)}")
        elif type(value) is not _APP_KEYS[key] or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            kind = {str: "a string", bool: "true or false", list: "a list of strings"}[_APP_KEYS[key]]
            yield Problem(file, 0, f"{key}: wrong type", f"it must be {kind}")
    for key in ("id", "name"):
        if key not in raw:
            yield Problem(file, 0, f"{key}: missing", "every app has an id and a name")
    if isinstance(raw.get("id"), str) and raw["id"] != directory:
        yield Problem(file, 0, f'id: "{raw["id"]}"', f'it must be the name of the directory, "{directory}"')
    elif raw.get("id") == "local":
        yield Problem(file, 0, 'id: "local"', "that id belongs to the administrator's own lists; choose another")
    for key in ("neighbours", "single_registrant"):
        for text in raw.get(key, ()) if isinstance(raw.get(key), list) else ():
            try:
                names.from_text(str(text))
            except ValueError as error:
                yield Problem(file, 0, f'{key}: "{text}" is not a domain name', str(error))
