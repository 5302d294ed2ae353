"""The results of a store to look at: one HTML page that opens offline, and figures for papers.

    write_report("./store", Path("report.html"))
    write_plot("./store", "overlap-matrix", Path("overlap.pdf"))

Each figure is one named query of `queries/` and one Vega-Lite specification, which the page draws
in the browser and `rlsparse plot` draws as PDF, SVG or PNG: the same numbers, by the same code.
"""

from rlsparse_ray.report.catalogue import FIGURES
from rlsparse_ray.report.drawing import Chart
from rlsparse_ray.report.page import write_report
from rlsparse_ray.report.plot import write_plot

__all__ = ["FIGURES", "Chart", "write_plot", "write_report"]
