"""Drawings as SVG files that need nothing else: light paper, and colours written out.

A page's own plots take their colours from its style sheet, which programs that read files of
drawings do not understand.
"""

import re
from collections.abc import Sequence

from cai_jax.page.markup import Html, element
from cai_jax.page.style import STYLE

PAPER, INK, SOFT, RULE = (
    dict(re.findall(r"--(\w+):(#\w+)", STYLE[: STYLE.index("@media")]))[name]
    for name in ("paper", "ink", "soft", "rule")
)
COLOURS = re.findall(r"--s\d:(#\w+)", STYLE[: STYLE.index("@media")])
RULES = "".join(
    f".line.s{i},.whisker.s{i}{{stroke:{colour}}}.dot.s{i},.name.s{i}{{fill:{colour}}}"
    for i, colour in enumerate(COLOURS)
)
FIXED = (
    f"text{{fill:{SOFT};font:12px sans-serif}}.title{{fill:{INK};font-size:15px;font-weight:600}}"
    f".name{{fill:{INK};font-weight:600}}.grid{{stroke:{RULE}}}.axis{{stroke:{SOFT}}}"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round}.whisker{stroke-width:1.4;opacity:.75}"
)


def svg_file(parts: Sequence[Html], width: float, height: float) -> str:
    """The content of a file, of parts in a box of width x height units."""
    paper = element("rect", width=width, height=height, fill=PAPER)
    return element(
        "svg",
        element("style", Html(FIXED + RULES)),
        paper,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=2 * width,
        height=2 * height,
    )
