"""How big: slices as Ray tasks. The only package that imports ray.

One machine is the default: Ray starts itself. On a cluster the same call takes an address, and
the store must be a place that every node sees. The driver holds plans and reports, never tensors.
"""

from rlsparse_ray.cluster.counting import count_overlaps, overlaps
from rlsparse_ray.cluster.extraction import extract
from rlsparse_ray.cluster.session import ray_session
from rlsparse_ray.placement import Resources
from rlsparse_ray.runs import Outcome

__all__ = ["Outcome", "Resources", "count_overlaps", "extract", "overlaps", "ray_session"]
