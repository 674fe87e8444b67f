"""Checks of configuration values, and options declared with them.

A check takes a value as TOML has it and returns what the program works with, or raises BadValue with what is wrong and what
would be right. Checks of lists and tables raise Several, so that every wrong member is reported at once. `option` declares a
dataclass field together with its default in TOML, its check and its help; `options` reads them back.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from typing import Any, NamedTuple

from embargo import names, toml
from embargo.errors import BadValue
from embargo.names import Name

Check = Callable[[Any], Any]

#: host names as certificates have them; never an address
_HOST = re.compile(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*(?!\d+$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_INTERFACE = re.compile(r"[^\x00-\x20/:\"*\\\x7f]+")  # names that the kernel accepts, less those that nft(8) reads differently
_IFNAMSIZ = 16  # octets, with the final zero (linux/if.h)


class Several(ValueError):
    """What is wrong with members of a list or table, each with its path below the option."""

    def __init__(self, bad: list[tuple[toml.Path, BadValue]]) -> None:
        self.bad = bad
        super().__init__()


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Option(NamedTuple):
    """`default`: as it would be written in TOML."""

    default: Any
    check: Check
    help: str


_SAME = object()


def option(default: Any, check: Check, help_: str, *, value: Any = _SAME) -> Any:
    """A dataclass field for one option. `value`: the field's default, if it is not the checked default."""
    became = check(default) if value is _SAME else value
    return field(default=became, metadata={"option": Option(default, check, help_)})


def options(section: type) -> dict[str, Option]:
    """The options of a dataclass by key; a field named like a Python keyword has an underscore that its key lacks."""
    return {each.name.rstrip("_"): each.metadata["option"] for each in fields(section) if "option" in each.metadata}


# ── plain values ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def boolean(value: Any) -> bool:
    """True or False. BadValue for anything else."""
    if not isinstance(value, bool):
        raise BadValue("wrong type", "it must be true or false")
    return value


def integer(low: int, high: int) -> Callable[[Any], int]:
    """A check: a whole number from `low` to `high`."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue("wrong type", f"it must be a number from {low} to {high}")
        if not low <= value <= high:
            raise BadValue(f"{value} is out of range", f"it must be a number from {low} to {high}")
        return value

    return check


class Hex(int):
    """A number that pages show in hexadecimal."""


def mask(value: Any) -> int:
    """32 bits of which at least four adjacent ones are set, or 0."""
    found = integer(0, 0xFFFF_FFFF)(value)
    bits = found // (found & -found) if found else 0
    if found and (bits & (bits + 1) or bits < 15):
        raise BadValue(f"0x{found:08x} is not four or more adjacent bits", "write it as in 0xff000000, or 0")
    return found


def text(value: Any) -> str:
    """A string that is not empty. BadValue for anything else."""
    if not isinstance(value, str):
        raise BadValue("wrong type", "it must be a string")
    if not value:
        raise BadValue("is empty", "write a name")
    return value


def path(value: Any) -> str:
    """An absolute path. BadValue for anything else."""
    if not isinstance(value, str):
        raise BadValue("wrong type", "it must be a string, an absolute path")
    if not value.startswith("/") or "\0" in value:
        raise BadValue(f'"{value}" is not an absolute path', "start it with /")
    return value


def path_or_empty(value: Any) -> str:
    """An absolute path, or an empty string."""
    return value if value == "" else path(value)


def choice(*words: str) -> Callable[[Any], str]:
    """A check: one of these words."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise BadValue("wrong type", f"it must be one of {', '.join(words)}")
        if value not in words:
            near = closest(value, words)
            meant = f'did you mean "{near}"? ' if near else ""
            raise BadValue(f'"{value}" is not allowed', f"{meant}it must be one of {', '.join(words)}")
        return value

    return check


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that a misspelt one is most like, or an empty string."""
    import difflib  # slow to load, and only mistakes need it

    return "".join(difflib.get_close_matches(word, list(known), 1))


# ── addresses and names ──────────────────────────────────────────────────────────────────────────────────────────────────


def address(text: str) -> str:
    """An IP address in its canonical form."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise BadValue(f'"{text}" is not an IP address', "write it as in 192.0.2.53 or 2001:db8::53") from None


def port(text: str) -> int:
    """A port number, 1 to 65535, from decimal text. BadValue for anything else."""
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536):
        raise BadValue(f'"{text}" is not a port', "a port is a number from 1 to 65535")
    return int(text)


def endpoint(text: str, default: int) -> tuple[str, int]:
    """(address, port) of `192.0.2.1`, `192.0.2.1:53`, `2001:db8::1` or `[2001:db8::1]:53`."""
    host, number = text, str(default)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadValue(f'"{text}" is not an address', "write it as in [2001:db8::53]:53")
        number = rest[1:] if rest else number
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
    return address(host), port(number)


def network(value: Any) -> str:
    """A network in its canonical form; a single address is one with the full prefix length."""
    hint = "write it as in 192.0.2.0/24 or 2001:db8::/32"
    if not isinstance(value, str):
        raise BadValue("wrong type", hint)
    try:
        interface = ipaddress.ip_interface(value.replace("%", "/"))  # a network has no scope
    except ValueError:
        raise BadValue(f'"{value}" is not a network', hint) from None
    if interface.ip != interface.network.network_address:
        raise BadValue(f'"{value}" has host bits set', f'write "{interface.network}" or "{interface.ip}"')
    return str(interface.network)


def interface(value: Any) -> str:
    """The name of a network interface. BadValue if the kernel could not have it."""
    if not isinstance(value, str):
        raise BadValue("wrong type", "it must be a string, an interface name")
    if not _INTERFACE.fullmatch(value) or len(value.encode()) >= _IFNAMSIZ:
        raise BadValue(f'"{value}" is not an interface name', "see `ip link`; a name has at most 15 octets and no wildcard")
    return value


def host(value: str) -> str | None:
    """A host name in lower case without its final dot, U-labels as A-labels; None if it is not a host name."""
    try:
        name = names.to_text(names.from_text(value)) if value else ""
    except ValueError:
        return None
    return name if _HOST.fullmatch(name) else None


#: what a name is written with; other octets are written as escapes, so that no line of another format looks like a name
_NAME_TEXT = re.compile(r"(?:[A-Za-z0-9_.-]|[^\x00-\x7f]|\\[0-9]{3}|\\[^0-9])*")


def visible(text: str) -> None:
    """BadValue for a character that cannot be seen."""
    if not text.isprintable():
        unseen = next(c for c in text if not c.isprintable())
        hint = "remove it; where a name really has it, write its octets as \\DDD or the label as xn--…"
        raise BadValue(f"has the invisible character U+{ord(unseen):04X}", hint)


def name(text: str) -> Name:
    """A name as lists, hosts files and the configuration have it, below the root. BadValue, with the text as the subject of its
    message, for all else: for what can match no name that is asked for, such as a wildcard, and for an address."""
    visible(text)
    if "*" in text:
        raise BadValue("has a wildcard", "a name already covers every name below it; write it without '*.'")
    if "/" in text:
        raise BadValue("is not a name, address or network", "write the name alone, without a path")
    matched = _NAME_TEXT.match(text)
    if matched and matched.end() < len(text):
        odd = text[matched.end()]
        raise BadValue(f"has the character {odd}", f"remove it, or write it as \\{ord(odd):03d} where a name really has it")
    try:
        found = names.from_text(text)
    except ValueError as error:
        raise BadValue("is not a domain name", str(error)) from None
    if found == names.ROOT:
        raise BadValue("is the root of all names", "write the name that is meant")
    if list(names.labels(found))[-1].isdigit():
        raise BadValue("is not an address or network", "write it as in 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32")
    return found


def zone(text: str) -> Name:
    """A zone as the configuration has it: a name, which stands for the names below it as well. BadValue as in `name`."""
    if reverse := _reverse_zone(text):
        raise BadValue("is an address or network", f'write its reverse zone, "{reverse}"')
    return name(text)


def _reverse_zone(text: str) -> str:
    """The smallest reverse zone that holds a network; empty for what is none."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return ""
    labels = names.to_text(names.reverse(network.network_address.packed)).split(".")
    known = network.prefixlen // (8 if network.version == 4 else 4)
    return ".".join(labels[len(labels) - 2 - known :])


# ── lists and tables ─────────────────────────────────────────────────────────────────────────────────────────────────────


def many(check: Check, *, least: int = 0) -> Callable[[Any], tuple[Any, ...]]:
    """A list, each member checked."""

    def every(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValue("wrong type", 'it must be a list, as in ["…"]')
        if len(value) < least:
            raise BadValue("is empty", "name at least one")
        return tuple(members(((number,), item, check) for number, item in enumerate(value)))

    return every


def members(wanted: Iterable[tuple[toml.Path, Any, Check]]) -> list[Any]:
    """The values of (path, value, check), all checked. Raises Several with everything that is wrong."""
    checked: list[Any] = []
    bad: list[tuple[toml.Path, BadValue]] = []
    for where, value, check in wanted:
        try:
            checked.append(check(value))
        except BadValue as refused:
            bad.append((where, refused))
        except Several as several:
            bad += [((*where, *below), refused) for below, refused in several.bad]
    if bad:
        raise Several(bad)
    return checked


def either(*words: str | bool, check: Check) -> Check:
    """One of the words, or a list."""
    shown = ", ".join(f'"{word}"' if isinstance(word, str) else str(word).lower() for word in words)

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return check(value)
        if any(value is word or (isinstance(word, str) and value == word) for word in words):
            return value
        if isinstance(value, str):
            raise BadValue(f'"{value}" is not allowed', f"it must be {shown} or a list")
        raise BadValue("wrong type", f"it must be {shown} or a list")

    return one


def widened(check: Check, more: str) -> Check:
    """A check whose hints end with what a caller accepts besides."""

    def hinted(value: Any) -> Any:
        try:
            return check(value)
        except BadValue as refused:
            raise BadValue(refused.message, f"{refused.hint}, or {more}") from None

    return hinted
