"""Bring a store up to date with a corpus, as a Ray job: for cron, Airflow or a CronJob.

ray job submit --working-dir . -- python jobs/refresh.py corpus.yaml --store s3://masks/store

Takes the arguments of `rlsparse refresh`; inside a job, Ray connects to the cluster that runs it.
"""

import sys

from rlsparse_ray.cli import run

if __name__ == "__main__":
    sys.argv.insert(1, "refresh")
    run()
