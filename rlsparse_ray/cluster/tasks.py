"""Ray tasks in flight: sent while there is room, collected as they end."""

import functools
import re
import socket
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, TaskCancelledError

from rlsparse_ray.cluster.session import LOOK_SECONDS, MAX_RETRIES
from rlsparse_ray.errors import NoStoreError, RlsparseError, StoreError
from rlsparse_ray.placement import Resources


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
    return ray.remote(max_retries=MAX_RETRIES, **options)(_on_node(function))


def _on_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for a node that may not see what the driver sees."""

    @functools.wraps(function)
    def task_on_node(*args: Any) -> Any:
        try:
            return function(*args)
        except NoStoreError as error:
            raise StoreError(
                f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) does not see the "
                f"store {error.place}, which this run made or found: use a folder that every node "
                "shares, or a bucket (s3://, gs://, az://)"
            ) from error

    return task_on_node


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
    except OutOfMemoryError as error:
        raise RlsparseError(
            f"{what}: {_memory_used(error)}, {MAX_RETRIES + 1} times: end what else runs there, or "
            f"give the node fewer CPUs or more memory; what is finished is kept: run again to go on"
        ) from error
    except RayError as error:
        raise RlsparseError(
            f"{what}: failed {MAX_RETRIES + 1} times ({type(error).__name__}: {error}); "
            f"what is finished is kept: run again to go on"
        ) from error


def _memory_used(error: OutOfMemoryError) -> str:
    """Of the many lines that Ray says, which node had how much."""
    found = re.search(r"\(IP: ([^,)]+)[^)]*\) was (\S+) used / (\S+) limit", str(error))
    if found is None:
        return "its node ran out of memory"
    return f"node {found[1]} ran out of memory ({found[2]} of {found[3]} used)"
