"""Measure ranks, spectra and mask overlaps of the updates in a store, as a Ray job.

ray job submit --working-dir . -- python jobs/spectra.py --store s3://masks/store

Takes the arguments of `rlsparse spectra`; inside a job, Ray connects to the cluster that runs it.
"""

import sys

from rlsparse_ray.cli import run

if __name__ == "__main__":
    sys.argv.insert(1, "spectra")
    run()
