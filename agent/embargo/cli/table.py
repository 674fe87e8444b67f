"""Text in columns: as wide as needed, and folded where the terminal is narrower."""

import unicodedata
from collections.abc import Iterable, Sequence

GAP = "  "
NARROWEST = 8  # no column is folded to fewer terminal cells


def layout(rows: Iterable[Sequence[str]], width: int | None) -> list[str]:
    """One line of text per row, or several where cells are folded to fit into `width` terminal cells (None: no limit)."""
    rows = list(rows)
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        _shrink(widths, width - len(GAP) * (len(widths) - 1))
    return [line for row in rows for line in _row(row, widths)]


def cells(text: str) -> int:
    """The number of terminal cells that a text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _shrink(widths: list[int], room: int) -> None:
    """Take from the widest columns until all fit, or none can shrink further."""
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda column: widths[column])
        if widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def _row(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    folded = [_fold(cell, width) for cell, width in zip(row, widths, strict=True)]
    return [
        GAP.join(
            part + " " * (width - cells(part))
            for part, width in zip((cell[number] if number < len(cell) else "" for cell in folded), widths, strict=True)
        ).rstrip()
        for number in range(max(map(len, folded)))
    ]


def _fold(text: str, width: int) -> list[str]:
    """Break a text between words, and inside a word that is too long for a line of its own."""
    if cells(text) <= width:
        return [text]
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cells(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if cells(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
