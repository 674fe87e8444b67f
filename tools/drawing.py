"""Draws docs/overview.svg, the layers and processes of a gateway with Embargo: python -m tools.drawing

Text and boxes only, with both colour schemes in the file: a viewer that knows `prefers-color-scheme` picks one, any other shows
the light one on a ground of its own.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

TARGET = Path(__file__).parent.parent / "docs" / "overview.svg"
WIDTH, HEIGHT = 1040, 600
LINE = 19  # pixels from one line of text to the next
FONT = "font-family: 'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif; font-size: 13px"

#: class → (property, light, dark)
COLOURS = {
    "ground": ("fill", "#ffffff", "#0d1117"),
    "frame": ("stroke", "#8c959f", "#6e7681"),
    "outside": ("fill", "#f0f2f5", "#21262d"),
    "process": ("fill", "#dbeafe", "#12305c"),
    "kernel": ("fill", "#dcf3e1", "#123b22"),
    "text": ("fill", "#1f2328", "#e6edf3"),
    "note": ("fill", "#57606a", "#9da7b1"),
    "line": ("stroke", "#57606a", "#9da7b1"),
    "head": ("fill", "#57606a", "#9da7b1"),
}


class Box(NamedTuple):
    """A rectangle with a title and lines of text, all of them centred; `kind` is its colour."""

    x: int
    y: int
    width: int
    height: int
    kind: str
    title: str
    lines: tuple[str, ...] = ()

    def svg(self) -> Iterator[str]:
        yield (
            f'<rect class="{self.kind} frame" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6"/>'
        )
        middle = self.x + self.width // 2
        top = self.y + (self.height - LINE * (1 + len(self.lines))) // 2 + 14
        yield _text("text title", middle, top, self.title)
        for number, line in enumerate(self.lines, 1):
            yield _text("text", middle, top + number * LINE, line)


class Arrow(NamedTuple):
    """A line with a head at its end, and at its start too if `both`; each line of the note stands at `at`, left-aligned."""

    points: tuple[tuple[int, int], ...]
    note: tuple[str, ...]
    at: tuple[int, int]
    both: bool = False

    def svg(self) -> Iterator[str]:
        way = " ".join(f"{x},{y}" for x, y in self.points)
        start = ' marker-start="url(#head)"' if self.both else ""
        yield f'<polyline class="line" points="{way}" marker-end="url(#head)"{start}/>'
        for number, line in enumerate(self.note):
            yield _text("note start", self.at[0], self.at[1] + number * 16, line)


BOXES = (
    Box(20, 80, 140, 460, "outside", "Clients", ("phones,", "computers,", "containers")),
    Box(270, 80, 530, 90, "process", "resolvers", (
        "names: every query, and every name and address in an answer, is judged",
        "own user, no capability",
    )),
    Box(270, 250, 150, 110, "process", "guardian", ("nftables, drop log,", "learnt addresses;", "CAP_NET_ADMIN")),
    Box(460, 250, 150, 110, "process", "compiler", ("reads the lists,", "writes one image,", "then ends")),
    Box(650, 250, 150, 110, "process", "supervisor", ("starts the others,", "reloads; event log,", "control socket")),
    Box(270, 430, 530, 110, "kernel", "Linux kernel: nftables table inet embargo", (
        "port 53 to any other resolver: redirected to the resolvers above",
        "listed addresses, learnt addresses, encrypted DNS, HTTPDNS: rejected",
        "everything else: forwarded",
    )),
    Box(900, 80, 120, 90, "outside", "Upstreams", ("UDP, TCP, TLS",)),
    Box(900, 430, 120, 110, "outside", "Internet"),
)  # fmt: skip

ARROWS = (
    Arrow(((160, 105), (268, 105)), ("query",), (172, 98)),
    Arrow(((268, 130), (162, 130)), ("answer, or", "NXDOMAIN", "and reason"), (172, 147)),
    Arrow(((802, 125), (898, 125)), ("not", "blocked"), (832, 100), both=True),
    Arrow(((345, 172), (345, 248)), ("answered", "addresses"), (353, 206), both=True),
    Arrow(((535, 248), (535, 172)), ("policy image",), (543, 214)),
    Arrow(((458, 305), (422, 305)), (), (0, 0)),
    Arrow(((648, 305), (612, 305)), (), (0, 0)),
    Arrow(((345, 362), (345, 428)), ("netlink",), (353, 399), both=True),
    Arrow(((160, 485), (268, 485)), ("packets",), (172, 478)),
    Arrow(((800, 485), (898, 485)), ("not", "blocked"), (832, 460)),
)


def _text(kind: str, x: int, y: int, text: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def _rules(scheme: int) -> str:
    return " ".join(f".{name} {{ {colour[0]}: {colour[scheme]} }}" for name, colour in COLOURS.items())


def _document(parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        "<title>Embargo on a gateway: layers and processes</title>",
        "<!-- made by python -m tools.drawing -->",
        f"<style>text {{ {FONT}; text-anchor: middle }} .start {{ text-anchor: start; font-size: 12px }}",
        ".title { font-weight: bold; font-size: 14px } .line { fill: none; stroke-width: 1.5 } .hollow { fill: none }",
        _rules(1),
        f"@media (prefers-color-scheme: dark) {{ {_rules(2)} }}</style>",
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto-start-reverse">',
        '<path class="head" d="M0,0 L9,4 L0,8 z"/></marker></defs>',
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
    )
    return "\n".join((*head, *parts, "</svg>")) + "\n"


def render() -> str:
    """The drawing as SVG."""
    frame = '<rect class="hollow frame" x="245" y="40" width="580" height="530" rx="10" stroke-dasharray="6 4"/>'
    parts = [frame, _text("text title", 535, 64, "Gateway")]
    parts += [line for each in (*BOXES, *ARROWS) for line in each.svg()]
    return _document(parts)


if __name__ == "__main__":
    TARGET.write_text(render())
