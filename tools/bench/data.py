"""The names that are blocked and the queries that are asked: the same ones for every server, from a seed."""

import random
from collections.abc import Iterator
from pathlib import Path

WORDS = ("pay", "shop", "img", "api", "cdn", "log", "track", "metrics", "static", "ads", "m", "data", "cloud", "push")
TOPS = ("com", "net", "org", "cn", "info", "io")
ALLOWED = 5_000  # names that the upstream answers; all of them fit every cache


def blocked(count: int) -> Iterator[str]:
    """`count` different names, each the suffix of what is asked below it."""
    for number in range(count):
        word, other, top = WORDS[number % 14], WORDS[(number * 7 + 3) % 14], TOPS[number % 6]
        yield f"{word}{number}.{other}-blocked.{top}" if number % 3 else f"{word}{number}-blocked.{top}"


def allowed(count: int = ALLOWED) -> list[str]:
    return [f"{WORDS[number % 14]}{number}.allowed.{TOPS[number % 6]}" for number in range(count)]


def queries(kind: str, names: list[str], count: int) -> Iterator[str]:
    """dnsperf's lines. `blocked`: a name below a blocked one; `cached`; `mixed`: 30 % blocked; `miss`: each name once."""
    draw = random.Random(53)
    fine = allowed()
    for number in range(count):
        bad = bool(names) and (kind == "blocked" or (kind == "mixed" and draw.random() < 0.3))
        if bad:
            yield f"www.{draw.choice(names)} A\n"
        elif kind == "miss":
            yield f"u{number}.{draw.choice(fine)} A\n"
        else:
            yield f"{draw.choice(fine)} A\n"


def write(path: Path, kind: str, names: list[str], count: int) -> Path:
    with path.open("w") as file:
        file.writelines(queries(kind, names, count))
    return path
