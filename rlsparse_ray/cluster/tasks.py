"""Ray tasks in flight: sent while there is room, collected as they end."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from rlsparse_ray.cluster.session import LOOK_SECONDS
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.placement import Resources

MAX_RETRIES = 3
"""Times that Ray repeats a slice whose worker or node died; a bad checkpoint is never repeated."""

Progress = Callable[[int], None]
"""Called with the bytes that have been done since the last call."""


def drain(
    flying: dict[Any, Any],
    submit: Callable[[], bool],
    collect: Callable[[Any, Any], None],
) -> None:
    """Submit while `submit` finds something and room for it, and collect what is done.

    Both may put further work into `flying`. On an error the rest is cancelled.
    """
    try:
        while True:
            while submit():
                pass
            if not flying:
                return
            # nodes may join while nothing ends
            done, _ = ray.wait(list(flying), timeout=LOOK_SECONDS)
            for ref in done:
                collect(ref, flying.pop(ref))
    except BaseException:
        for ref in flying:
            ray.cancel(ref, force=True)
        raise


def task(function: Callable[..., Any], resources: Resources, device: str) -> Any:
    """max_calls=0 keeps GPU workers: Ray's default starts a process, and CUDA, for each task.

    num_cpus=0 beside GPUs: else a node with fewer CPUs than GPU shares leaves GPUs idle.
    """
    if device == "cuda":
        options = {"num_gpus": resources.gpu_fraction, "num_cpus": 0, "max_calls": 0}
    else:
        options = {"num_cpus": resources.cpus}
    return ray.remote(max_retries=MAX_RETRIES, **options)(function)


def get(ref: Any, what: str) -> Any:
    """The result of a task; our own errors as they were raised, Ray's with what was being done."""
    try:
        return ray.get(ref)
    except TaskCancelledError:
        raise
    except RayTaskError as error:
        if isinstance(error.cause, RlsparseError):
            raise error.cause from None
        raise
    except RayError as error:
        raise RlsparseError(
            f"{what}: failed {MAX_RETRIES + 1} times ({type(error).__name__}: {error}); "
            f"what is finished is kept: run again to go on"
        ) from error
