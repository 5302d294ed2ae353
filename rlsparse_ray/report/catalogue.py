"""Every figure there is, in the order of the page."""

from rlsparse_ray.errors import QueryError
from rlsparse_ray.report.consensus_figure import CONSENSUS
from rlsparse_ray.report.figure import Figure
from rlsparse_ray.report.geometry_figures import GEOMETRY
from rlsparse_ray.report.overlap_figures import OVERLAP
from rlsparse_ray.report.relation_figure import RELATIONS
from rlsparse_ray.report.run_figures import WITHIN_RUNS
from rlsparse_ray.report.sparsity_figures import SPARSITY
from rlsparse_ray.sql import nearest

FIGURES: tuple[Figure, ...] = (
    *OVERLAP,
    *RELATIONS,
    *CONSENSUS,
    *SPARSITY,
    *WITHIN_RUNS,
    *GEOMETRY,
)

SECTIONS: dict[str, tuple[Figure, ...]] = {
    "Is it more than chance?": (*OVERLAP, *RELATIONS, *CONSENSUS),
    "How sparse": SPARSITY,
    "Where, how far and when": WITHIN_RUNS,
    "Geometry of the updates": GEOMETRY,
}


def figure_named(name: str) -> Figure:
    """The figure of a name.

    Raises:
        QueryError: there is none; the message has the nearest name, or all of them.
    """
    found = {f.name: f for f in FIGURES}
    if name in found:
        return found[name]
    raise QueryError(f"no figure named {name!r}; {nearest(name, found)}")
