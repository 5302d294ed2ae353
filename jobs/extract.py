"""Extract a corpus into a store, as a Ray job.

ray job submit --working-dir . -- python jobs/extract.py corpus.yaml --store /shared/store

Takes the arguments of `rlsparse extract`; inside a job, Ray connects to the cluster that runs it.
"""

import sys

from rlsparse_ray.cli import run

if __name__ == "__main__":
    sys.argv.insert(1, "extract")
    run()
