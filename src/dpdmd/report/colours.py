"""Colours of a report: of text and axes, and one for each arm."""

from dpdmd.report.leads import kinds
from dpdmd.report.runs import ArmReport

# Text and axes are drawn in this colour, which becomes the page's text colour in the SVG.
INK = "#24292e"
ARM_COLOURS = {"teacher": "#7d8590", "teacher_few_steps": "#b08d57", "dmd": "#d9702a", "dp_dmd": "#1f8f8a"}
# At least 3 to 1 against the light and the dark page (WCAG 1.4.11), and 24 in CIELAB from each other and those above.
OTHER_COLOURS = (
    "#8a63d2", "#3d7fd9", "#c2477f", "#6a994e", "#d64545", "#b98e05", "#28a0c3", "#8e9c24", "#c17dbc", "#8d5b4c",
)  # fmt: skip


def arm_colours(arms: dict[str, ArmReport]) -> dict[str, str]:
    """A colour for each arm: fixed for the known kinds, in order for the others."""
    kind = kinds(arms)
    others = [name for name in arms if kind[name] not in ARM_COLOURS]
    known = {name: ARM_COLOURS[kind[name]] for name in arms if kind[name] in ARM_COLOURS}
    return known | {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}


def shade(colour: str) -> str:
    """The colour of text in a colour: an even mixture with INK, and on the page with the page's text colour."""
    pairs = zip(_bytes(colour), _bytes(INK), strict=True)
    return "#" + "".join(f"{(a + b + 1) // 2:02x}" for a, b in pairs)


def follow_page(svg: str) -> str:
    """The SVG with INK replaced by the page's text colour, also where it is mixed with another colour."""
    for colour in (*ARM_COLOURS.values(), *OTHER_COLOURS):
        svg = svg.replace(shade(colour), f"color-mix(in srgb, {colour}, currentColor)")
    return svg.replace(INK, "currentColor")


def _bytes(colour: str) -> bytes:
    return bytes.fromhex(colour[1:])


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar would otherwise start a formula."""
    return text.replace("$", r"\$")
