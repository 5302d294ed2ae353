"""Train and measure the runs that test the papers' claims, as a Ray job.

ray job submit --working-dir . -- python jobs/reproduce.py --scale small --out /shared/reproduce

Takes the arguments of `rlsparse reproduce`; inside a job, Ray connects to the cluster that runs it.
The folder must be one that every node sees.
"""

import sys

from rlsparse_ray.cli import run

if __name__ == "__main__":
    sys.argv.insert(1, "reproduce")
    run()
