"""A chart as a picture: the one place where Vega-Lite becomes PDF, SVG or PNG."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import vl_convert

from rlsparse_ray.report.figure import Spec
from rlsparse_ray.report.packed import records
from rlsparse_ray.report.place import check_place
from rlsparse_ray.report.theme import config
from rlsparse_ray.storage.local_files import write_file

WIDTH = 420
"""Pixels of the plotted area, without labels: about two columns of a journal at 96 a inch."""
_FONT = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
_PNG_SCALE = 300 / 96
"""Pixels of a PNG for one of the drawing: 300 a inch."""


_ID = re.compile(r'( id="|url\(#)((?:clip|gradient_)\d+)(?=["\)])')


@dataclass(frozen=True, slots=True)
class Chart:
    """A Vega-Lite specification and the rows that it draws, in the look of the report.

    A notebook shows it as it stands. Equal charts give equal bytes.

    Attributes:
        spec: the specification without data, width and colours.
        rows: what it draws.
        width: pixels of the plotted area, without labels.
    """

    spec: Spec
    rows: pa.Table
    width: int = WIDTH

    def whole(self) -> Spec:
        """The specification as any Vega-Lite takes it: with its rows, on white paper."""
        return {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            **self.spec,
            "width": self.width,
            "data": {"values": records(self.rows)},
            "config": {**config("light", _FONT, 11), "background": "white"},
        }

    def write(self, path: Path) -> None:
        """Draw it into a file, whole or not at all; its folder is made.

        Raises:
            RlsparseError: the suffix is none of .pdf, .svg and .png.
        """
        check_suffix(path)
        write_file(path, _DRAW[path.suffix](self.whole()))

    def _repr_svg_(self) -> str:
        return _svg(self.whole()).decode()


def check_suffix(path: Path) -> None:
    """Know before the work whether a picture can be of that format, and written there.

    Raises:
        RlsparseError: it cannot.
    """
    check_place(path, "figure", tuple(_DRAW))


def _pdf(spec: Spec) -> bytes:
    return bytes(vl_convert.vegalite_to_pdf(spec))


def _png(spec: Spec) -> bytes:
    return bytes(vl_convert.vegalite_to_png(spec, scale=_PNG_SCALE))


def _svg(spec: Spec) -> bytes:
    svg = str(vl_convert.vegalite_to_svg(spec))
    # Vega numbers gradients and clips from the start of the process on
    numbers: dict[str, int] = {}
    return _ID.sub(
        lambda found: f"{found[1]}vega{numbers.setdefault(found[2], len(numbers))}", svg
    ).encode()


_DRAW = {".pdf": _pdf, ".svg": _svg, ".png": _png}
