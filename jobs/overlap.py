"""Count the overlaps of all pairs of a store, as a Ray job.

ray job submit --working-dir . -- python jobs/overlap.py --store /shared/store

Takes the arguments of `rlsparse overlap`; inside a job, Ray connects to the cluster that runs it.
"""

import sys

from rlsparse_ray.cli import run

if __name__ == "__main__":
    sys.argv.insert(1, "overlap")
    run()
