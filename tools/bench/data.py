"""The names that are blocked and the queries that are asked, the same ones in every run.

A shorter list is the beginning of a longer one. No name is below another, so each line of a list does something.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

SEED = 53
# blocked, cached: few names again and again, as clients ask. scattered: the whole list and below it, which finds the end of
# every processor cache, and of the event log, where each name is a record of its own. miss: no name twice.
KINDS = ("blocked", "scattered", "cached", "mixed", "miss")
BLOCKED_SHARE = {"blocked": 1.0, "scattered": 1.0, "cached": 0.0, "mixed": 0.3, "miss": 0.0}
ALLOWED, ASKED = 5_000, 2_000  # names that are asked again and again, allowed and listed; they fit every server's cache
LINES = 200_000  # of a query file; dnsperf begins again at its end

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_TOPS = ("com", "com", "com", "net", "org", "info", "io", "cn")
_ABOVE = (
    "",
    "",
    "",
    "",
    "www.",
    "api.",
    "log.",
    "img.",
    "t.cdn.",
    "sdk.eu.",
)  # six of ten names are longer than the registered one


def blocked(count: int, seed: int = SEED) -> list[str]:
    """`count` names, mostly of two and three labels as public lists have them."""
    draw = random.Random(f"blocked {seed}")
    return [draw.choice(_ABOVE) + _registered(draw, number) for number in range(count)]


def allowed(count: int = ALLOWED, seed: int = SEED) -> list[str]:
    draw = random.Random(f"allowed {seed}")
    return [f"www.{_registered(draw, number, '-fine')}" for number in range(count)]


def _registered(draw: random.Random, number: int, mark: str = "") -> str:
    """A name that no other number gets: letters, then the number."""
    word = "".join(draw.choices(_SYLLABLES, k=draw.randint(2, 4)))
    return f"{word}{number}{mark}.{draw.choice(_TOPS)}"


def queries(kind: str, names: Sequence[str], count: int, seed: int = SEED) -> Iterator[str]:
    """dnsperf's lines. A blocked query is for a listed name or one below it."""
    draw = random.Random(f"{kind} {seed}")
    fine = allowed(seed=seed)
    if names and kind != "scattered":
        names = draw.sample(names, min(ASKED, len(names)))
    for number in range(count):
        if draw.random() < BLOCKED_SHARE[kind]:
            yield f"{draw.choice(('', 'www.', 'a1.cdn.'))}{draw.choice(names)} A\n"
        elif kind == "miss":
            yield f"u{number}.{draw.choice(fine)} A\n"
        else:
            yield f"{draw.choice(fine)} A\n"


def write(directory: Path, names: Sequence[str], misses: int) -> dict[str, Path]:
    """A file of queries for each kind, and `warm`, which asks each allowed name once."""
    files = {kind: directory / f"{kind}.queries" for kind in (*KINDS, "warm")}
    for kind in KINDS:
        with files[kind].open("w") as file:
            file.writelines(queries(kind, names, misses if kind == "miss" else LINES))
    files["warm"].write_text("".join(f"{name} A\n" for name in allowed()))
    return files
