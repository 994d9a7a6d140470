"""Draws the pictures of README.md and concepts.md: one SVG file each in docs/pictures.

    python docs/draw.py

Coordinates are pixels from the top left. A picture has a ground of its own, so it reads on a dark page too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

PLUS, MINUS, CLEAN, FROZEN, OURS = "#2f6fb3", "#c26a12", "#6b7280", "#9aa1ab", "#2e8b57"
PALE = {PLUS: "#dbe9f8", MINUS: "#fbe6d0", CLEAN: "#e8eaee", FROZEN: "#f0f1f4", OURS: "#dcf2e4"}
INK = "#1f2430"
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
LINE = 1.4  # of a line of text, in font sizes


class Picture:
    """Shapes in the order in which they were added, later ones on top."""

    def __init__(self, width: int, height: int, alt: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="{FONT}" role="img">\n<title>{escape(alt)}</title>'
        )
        self._shapes = [f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>']

    def svg(self) -> str:
        return "\n".join([self._head, *self._shapes, "</svg>", ""])

    def text(
        self, x: float, y: float, words: str, size: float = 13, *,
        colour: str = INK, anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        """`words` with their base line at y; a new line in them is one here."""
        weight = ' font-weight="600"' if bold else ""
        for number, line in enumerate(words.split("\n")):
            self._shapes.append(
                f'<text x="{x:g}" y="{y + LINE * size * number:g}" font-size="{size:g}" fill="{colour}" '
                f'text-anchor="{anchor}"{weight}>{escape(line, quote=False)}</text>'
            )

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, words: str = "",
        size: float = 13, *, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A rectangle with words in its middle."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{PALE[colour]}" '
            f'stroke="{colour}"{dash}/>'
        )
        if words:
            lines = words.count("\n") + 1
            first = y + height / 2 + 0.35 * size - LINE * size * (lines - 1) / 2
            self.text(x + width / 2, first, words, size, anchor="middle")

    def line(self, points: Sequence[tuple[float, float]], colour: str = INK, *, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'
        )

    def dot(self, x: float, y: float, colour: str = INK, radius: float = 4) -> None:
        self._shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{colour}"/>')

    def ring(self, x: float, y: float, radius: tuple[float, float], colour: str) -> None:
        size = f'rx="{radius[0]:g}" ry="{radius[1]:g}"'
        self._shapes.append(f'<ellipse cx="{x:g}" cy="{y:g}" {size} fill="none" stroke="{colour}"/>')

    def arrow(self, *points: tuple[float, float], colour: str = INK) -> None:
        """Through the points, with its head at the last one."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        base = (x1 - 8 * ux, y1 - 8 * uy)
        self.line([*points[:-1], base], colour)
        corners = ((x1, y1), (base[0] - 4 * uy, base[1] + 4 * ux), (base[0] + 4 * uy, base[1] - 4 * ux))
        path = " ".join(f"{x:.4g},{y:.4g}" for x, y in corners)
        self._shapes.append(f'<polygon points="{path}" fill="{colour}"/>')


def step() -> Picture:
    """A step of ours; beside it what MeZO and stacked P-RGE do."""
    picture = Picture(880, 452, "A step: seeds, one batched forward, scalars, an update in place")
    text, box, arrow = picture.text, picture.box, picture.arrow
    text(20, 30, "One step", 16, bold=True)
    text(20, 54, "q = 2 directions, both signs: 4 copies of the rows, one forward", 13, colour=CLEAN)

    for row, (words, colour) in enumerate((("+z₁", PLUS), ("+z₂", PLUS), ("−z₁", MINUS), ("−z₂", MINUS))):
        y = 72 + 40 * row
        box(20, y, 92, 32, colour, words, 14)
        arrow((112, y + 16), (146, y + 16), colour=colour)
        arrow((424, y + 16), (458, y + 16), colour=colour)
        box(460, y, 60, 32, colour, f"L{words}", 13)
    box(148, 66, 276, 166, FROZEN)
    text(162, 88, "frozen model, 8 bits or 4 if you like", 12, colour=CLEAN)
    box(164, 98, 244, 122, OURS)
    text(176, 120, "adapted linear, one kernel", 13, bold=True)
    text(176, 144, "y = W x + (B + c·z) A x", 14)
    text(176, 168, "c is +ε or −ε, by the row's group", 12)
    text(176, 187, "z comes from its seed, in registers,", 12)
    text(176, 206, "where it is used", 12)

    arrow((490, 232), (490, 262))
    box(384, 264, 152, 50, CLEAN, "g₁, g₂ = (L₊ − L₋) / 2ε\nq scalars", 12)
    arrow((384, 289), (350, 289))
    box(148, 264, 200, 50, OURS, "B ← B − lr/q · Σ gₖ zₖ\nin place, one pass", 12)
    arrow((248, 264), (248, 234))
    box(20, 264, 92, 50, CLEAN, "q seeds\n8 bytes each", 12)
    arrow((112, 289), (146, 289))
    arrow((66, 264), (66, 234))

    text(20, 352, "Never in memory", 13, bold=True)
    text(20, 374, "a noise tensor · a perturbed B · activations kept for a backward pass", 13)
    text(20, 404, "On disk", 13, bold=True)
    text(20, 426, "28 + 4q bytes a step, and with the seed of the run they are the whole run", 13)

    picture.line([(558, 20), (558, 432)], FROZEN)
    text(578, 30, "MeZO", 16, bold=True)
    text(640, 30, "forward after forward", 13, colour=CLEAN)
    for number, (words, colour) in enumerate(
        (("p + ε z", PLUS), ("forward", FROZEN), ("p − 2ε z", MINUS), ("forward", FROZEN), ("p + ε z", PLUS))
    ):
        x, y = 578 + 98 * (number % 3), 46 + 46 * (number // 3)
        box(x, y, 84, 32, colour, words, 12)
        if number % 3 < 2:
            arrow((x + 84, y + 16), (x + 98, y + 16))
    box(774, 92, 84, 32, OURS, "p − lr g z", 12)
    arrow((816, 78), (816, 85), (620, 85), (620, 92))
    text(578, 150, "4 passes over all parameters a direction,", 12)
    text(578, 168, "each with z as a tensor; half precision", 12)
    text(578, 186, "drifts, for p is not put back to the bit", 12)

    picture.line([(578, 208), (858, 208)], FROZEN)
    text(578, 238, "Stacked P-RGE", 16, bold=True)
    text(718, 238, "one forward", 13, colour=CLEAN)
    for number, (words, colour) in enumerate(
        (("B + ε z₁", PLUS), ("B + ε z₂", PLUS), ("B − ε z₁", MINUS), ("B − ε z₂", MINUS))
    ):
        box(578 + 8 * number, 254 + 24 * number, 100, 36, colour, words, 12)
    arrow((706, 308), (734, 308))
    box(736, 286, 122, 44, FROZEN, "batched products\nof 2q matrices", 12)
    text(578, 384, "2q perturbed copies of every B, made", 12)
    text(578, 402, "and held in memory in each step", 12)
    return picture


def group() -> Picture:
    """The rows of a step and what the groups of each look like."""
    picture = Picture(760, 250, "Groups: equal blocks of rows, each with a seed and a coefficient")
    text, box = picture.text, picture.box
    for x, words in ((20, "seeds [G]"), (110, "coeffs [G]"), (210, "rows of x, [G · B, in]")):
        text(x, 30, words, 13, bold=True)
    groups = (("17", "+ε", PLUS), ("42", "+ε", PLUS), ("17", "−ε", MINUS), ("42", "−ε", MINUS))
    for number, (seed, coefficient, colour) in enumerate(groups):
        y = 44 + 48 * number
        box(20, y, 70, 40, colour, seed)
        box(110, y, 70, 40, colour, coefficient)
        for row in range(3):
            box(210, y + 14 * row, 190, 12, colour)
        picture.arrow((404, y + 20), (434, y + 20), colour=colour)
        text(444, y + 25, f"rows {3 * number} to {3 * number + 2} see B {coefficient[0]} ε z({seed})")
    return picture


def query() -> Picture:
    """Two directions in the plane of two parameters."""
    picture = Picture(760, 250, "Queries: directions tried from B, each with both signs")
    text, arrow = picture.text, picture.arrow
    for radius in (28, 54, 80, 104):
        picture.ring(270, 76, (1.5 * radius, radius), PALE[CLEAN])
    arrows = (("+ε z₁", (60, -52), PLUS), ("−ε z₁", (-60, 52), MINUS))
    for name, (dx, dy), colour in (*arrows, ("+ε z₂", (-64, -46), PLUS), ("−ε z₂", (64, 46), MINUS)):
        arrow((180, 150), (180 + dx, 150 + dy), colour=colour)
        text(180 + 1.3 * dx, 155 + 1.3 * dy, name, 13, colour=colour, anchor="middle")
    picture.dot(180, 150)
    text(180, 178, "B", 13, anchor="middle", bold=True)
    text(268, 58, "low loss", 12, colour=CLEAN, anchor="middle")
    text(440, 60, "g₁ = (L(B + ε z₁) − L(B − ε z₁)) / 2ε", 13)
    text(440, 84, "g₂ = (L(B + ε z₂) − L(B − ε z₂)) / 2ε", 13)
    text(440, 122, "B moves by − lr/2 · (g₁ z₁ + g₂ z₂)", 13, colour=OURS, bold=True)
    text(440, 156, "z₁ and z₂ are known by their seeds,", 13)
    text(440, 176, "so g₁ and g₂ are all that a step has to tell", 13)
    return picture


def stream() -> Picture:
    """One seed, two parameters, two noises."""
    picture = Picture(760, 210, "Streams: the name of a parameter decides which noise it gets")
    text, box, arrow = picture.text, picture.box, picture.arrow
    box(20, 82, 90, 46, CLEAN, "seed 17", 13)
    shades = ("1011001011010010", "0110100110110001")
    for number, name in enumerate(("layers.0 … q_proj", "layers.1 … q_proj")):
        y = 30 + 96 * number
        arrow((112, 105), (158, y + 28), colour=OURS)
        box(160, y, 150, 54, FROZEN, f"{name}\n.weight", 13)
        arrow((312, y + 27), (402, y + 27))
        text(356, y + 17, "hash", 12, colour=CLEAN, anchor="middle")
        box(404, y, 110, 54, OURS, f"stream {number + 1}\nint64", 13)
        arrow((516, y + 27), (564, y + 27))
        for cell, shade in enumerate(shades[number]):
            x = 570 + 18 * (cell % 8)
            box(x, y + 9 + 18 * (cell // 8), 16, 16, PLUS if shade == "1" else MINUS)
        text(728, y + 32, "z", 14)
    return picture


def tail() -> Picture:
    """Tokens that all groups share, and those of which each has its own."""
    picture = Picture(
        760, 240, "Tails: the last tokens of a row are forwarded by every group, the others once"
    )
    text, box, arrow = picture.text, picture.box, picture.arrow
    words = ("A", "warm", "and", "very", "funny", "film", ".")
    text(20, 30, "once, for the B rows of the batch", 13, bold=True)
    for number, word in enumerate(words):
        box(20 + 58 * number, 92, 54, 34, FROZEN, word)
    text(20, 152, "base model alone: its keys and values", 12, colour=CLEAN)
    text(20, 170, "are the same in every group", 12, colour=CLEAN)
    text(520, 30, "G times, with the adapters", 13, bold=True)
    names = (("+z₁", PLUS), ("+z₂", PLUS), ("−z₁", MINUS), ("−z₂", MINUS))
    for row, (name, colour) in enumerate(names):
        y = 42 + 38 * row
        arrow((428, 109), (516, y + 16), colour=colour)
        for number, word in enumerate(("It", "was")):
            box(520 + 58 * number, y, 54, 32, colour, word)
        text(648, y + 21, name, 13, colour=colour)
    text(520, 216, "the tail: 2 tokens", 12, colour=CLEAN)
    text(20, 216, "7 B + 2 G B tokens are forwarded, not 9 G B", 13, bold=True)
    return picture


def guard() -> Picture:
    """A run whose loss runs away."""
    picture = Picture(760, 250, "The guard: a run ends when the mean of its losses has left its lowest value")
    text, line = picture.text, picture.line
    line([(50, 20), (50, 214), (500, 214)])
    text(30, 120, "loss", 12, anchor="middle", colour=CLEAN)
    text(275, 236, "steps", 12, anchor="middle", colour=CLEAN)

    def mean(x: float) -> float:
        risen = 0.0042 * max(0, x - 250) ** 2
        return 60 + 108 * (1 - math.exp(-x / 70)) - risen

    lowest = max(mean(x) for x in range(0, 391))
    bound = lowest - 40
    end = next(x for x in range(250, 391) if mean(x) < bound)
    for x in range(0, end, 10):
        picture.dot(55 + x, mean(x) + 26 * math.sin(2.3 * x) * math.cos(0.37 * x), FROZEN, 2.5)
    line([(55 + x, mean(x)) for x in range(0, end + 1)], PLUS)
    line([(50, lowest), (500, lowest)], OURS, dashed=True)
    line([(50, bound), (500, bound)], MINUS, dashed=True)
    picture.dot(55 + end, mean(end), MINUS, 6)
    text(55 + end, mean(end) - 16, "the run ends", 13, colour=MINUS, bold=True, anchor="middle")
    text(510, 50, "● the loss of a step", 12, colour=CLEAN)
    text(510, 70, "— the mean of the last 20", 12, colour=PLUS)
    text(510, bound + 4, "three deviations of a loss above it", 12, colour=MINUS)
    text(510, lowest + 4, "the lowest mean so far", 12, colour=OURS)
    return picture


def journal() -> Picture:
    """The file, and what it is good for."""
    picture = Picture(
        760, 230, "The journal: a header and one small record a step, from which the adapter is rebuilt"
    )
    text, box, arrow = picture.text, picture.box, picture.arrow
    box(20, 30, 190, 76, CLEAN, "header\nseed of the run, q, ε,\nnames, fingerprints", 13)
    for number, words in enumerate(("step 0", "step 1", "step 2", "…", "step t")):
        box(214 + 92 * number, 30, 88, 76, OURS, words, 13)
    box(674, 30, 46, 76, MINUS, "torn", 12, dashed=True)
    text(214, 128, "loss, rate, q coefficients, crc32: 28 + 4q bytes", 12, colour=CLEAN)
    text(740, 128, "cut off on open", 12, colour=MINUS, anchor="end")
    arrow((308, 142), (308, 164))
    box(20, 166, 170, 44, FROZEN, "base model, B of step 0", 13)
    arrow((190, 188), (224, 188))
    box(226, 166, 190, 44, OURS, "the updates, once more", 13)
    arrow((416, 188), (450, 188))
    box(452, 166, 288, 44, PLUS, "the adapter after step t, to the bit", 13)
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    function.__name__: function for function in (step, group, query, stream, tail, guard, journal)
}


def main() -> None:
    folder = Path(__file__).resolve().parent / "pictures"
    folder.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
