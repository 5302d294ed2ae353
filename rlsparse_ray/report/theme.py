"""How everything looks: one palette for light, dark and paper, safe for colour-blind readers.

The categories are those of Okabe and Ito, darkened for light pages and lightened for dark ones
until each stands out from its ground (contrast 3 and more, which WCAG asks of graphics).
"""

from typing import Any

LIGHT = {
    "ground": "#ffffff",
    "ink": "#16181d",
    "soft": "#5b6270",
    "line": "#d9dce2",
    "accent": "#0b5cad",
    "second": "#b8480f",
    "muted": "#8a919e",
}
DARK = {
    "ground": "#14161a",
    "ink": "#eceef2",
    "soft": "#a3abb8",
    "line": "#333842",
    "accent": "#6db3f2",
    "second": "#f0935a",
    "muted": "#7f8794",
}
CATEGORIES = {
    "light": [
        "#0b5cad",
        "#b8480f",
        "#00795a",
        "#96507c",
        "#8a6d00",
        "#2f8fb8",
        "#5b6270",
        "#16181d",
    ],
    "dark": [
        "#6db3f2",
        "#f0935a",
        "#3cc79b",
        "#d99bc2",
        "#e3c847",
        "#8fd6f5",
        "#a3abb8",
        "#eceef2",
    ],
}
DIVERGING = {
    "light": ["#0a3f78", "#4d8fcb", "#f1f2f4", "#dd8452", "#7d2c05"],
    "dark": ["#8cc6ff", "#2f6ea8", "#23262d", "#b5622f", "#ffb48a"],
}
SEQUENTIAL = {
    "light": ["#f1f4f8", "#a9cbe8", "#4d8fcb", "#0b5cad", "#062f5c"],
    "dark": ["#1d2128", "#16456f", "#2f7fc1", "#7fbff5", "#dcefff"],
}
SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def config(mode: str, font: str = SANS, size: int = 12) -> dict[str, Any]:
    """The Vega-Lite configuration of a mode, `light` or `dark`.

    Marks name the colours of the palette by style: accent, second, muted, rule.
    """
    p = LIGHT if mode == "light" else DARK
    text = {"labelColor": p["soft"], "titleColor": p["soft"], "titleFontWeight": "normal"}
    sizes = {"labelFontSize": size - 1, "titleFontSize": size - 1}
    return {
        "background": "transparent",
        "font": font,
        "title": {"color": p["ink"], "fontSize": size, "anchor": "start"},
        "view": {"stroke": None},
        "padding": 4,
        "axis": {
            **(text | sizes),
            "domainColor": p["line"],
            "gridColor": p["line"],
            "gridOpacity": 0.7,
            "tickColor": p["line"],
            "titlePadding": 8,
            "labelSeparation": 6,
        },
        "axisY": {"labelLimit": 240, "domain": False, "ticks": False, "labelPadding": 8},
        "axisX": {"labelLimit": 200},
        "legend": {
            **(text | sizes),
            "orient": "top",
            "titleOrient": "left",
            "symbolType": "circle",
        },
        "range": {
            "category": CATEGORIES[mode],
            "diverging": DIVERGING[mode],
            "ramp": SEQUENTIAL[mode],
            "heatmap": SEQUENTIAL[mode],
            "ordinal": SEQUENTIAL[mode],
        },
        "mark": {"color": p["accent"]},
        "text": {"color": p["ink"], "fontSize": size},
        "style": {
            "accent": {"fill": p["accent"], "stroke": p["accent"], "color": p["accent"]},
            "second": {"fill": p["second"], "stroke": p["second"], "color": p["second"]},
            "muted": {"fill": p["muted"], "stroke": p["muted"], "color": p["muted"]},
            "rule": {"stroke": p["soft"], "color": p["soft"]},
            "ink": {"fill": p["ink"], "stroke": p["ink"], "color": p["ink"]},
            "label": {"fill": p["ink"], "color": p["ink"], "fontSize": size},
            "number": {"fill": p["ink"], "color": p["ink"]},
            "number-on-dark": {"fill": p["ground"], "color": p["ground"]},
        },
    }
