"""What Ray's dashboard and Prometheus show of an extraction."""

from functools import lru_cache

from ray.util import metrics


class Meters:
    """Ray's metrics of a process: what a dashboard or Prometheus shows of all workers together."""

    def __init__(self) -> None:
        self.slices = metrics.Counter("rlsparse_slices_done", "Slices that are finished.")
        self.nbytes = metrics.Counter("rlsparse_bytes_read", "Bytes read by finished slices.")
        self.failed = metrics.Counter("rlsparse_pairs_failed", "Pairs that could not be compared.")
        self.waiting = metrics.Gauge("rlsparse_slices_waiting", "Work not yet submitted.")
        self.seconds = metrics.Histogram(
            "rlsparse_slice_seconds",
            "Seconds that a slice takes.",
            boundaries=[0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
        )

    def slice_done(self, nbytes: int, seconds: float) -> None:
        """Count a slice."""
        self.slices.inc()
        if nbytes:
            self.nbytes.inc(nbytes)
        self.seconds.observe(seconds)

    def stands(self, waiting: int, failed: int) -> None:
        """What the driver knows: slices and checks not yet submitted, and pairs newly failed."""
        self.waiting.set(waiting)
        if failed:
            self.failed.inc(failed)


@lru_cache(maxsize=1)
def meters() -> Meters:
    """Those of this process."""
    return Meters()
