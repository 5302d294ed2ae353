"""Tensors of two models, or of one, in windows: memory does not grow with the model."""

from collections.abc import Generator, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from rlsparse_ray.errors import PatchError
from rlsparse_ray.weights import Reader, ReadRequest, TensorSpec, prefetch

Raw = npt.NDArray[np.uint8]

WINDOW = 2 << 20
"""Bytes of a side compared at once: what the reader has just copied is still in the L3 cache (with
8 MiB, finding the changed entries takes 1.5 times as long)."""

_READ_AHEAD = 4
_WIDTHS = (1, 2, 4, 8)


def width_of(spec: TensorSpec) -> int:
    """Bytes an element; 1 if there are none.

    Raises:
        PatchError: elements below a byte, or of no usual size.
    """
    if spec.numel == 0:
        return 1
    width, rest = divmod(spec.nbytes, spec.numel)
    if rest or width not in _WIDTHS:
        raise PatchError(
            f"{spec.file.path}: tensor {spec.name}: {spec.dtype} has no whole bytes an element: "
            "patches hold elements of 1, 2, 4 or 8 bytes: dequantise both models to bf16"
        )
    return width


def bits(raw: Raw, width: int) -> npt.NDArray[np.unsignedinteger]:
    """The elements as unsigned integers: equal only if their bits are."""
    return raw.view(f"u{width}")


def windows(spec: TensorSpec) -> Iterator[ReadRequest]:
    """The ranges of a tensor in order; none if it is empty."""
    return ranges_of(ReadRequest(spec.file, spec.offset, spec.nbytes))


def ranges_of(whole: ReadRequest) -> Iterator[ReadRequest]:
    """A range in pieces of WINDOW bytes."""
    for start in range(0, whole.nbytes, WINDOW):
        yield ReadRequest(whole.file, whole.offset + start, min(WINDOW, whole.nbytes - start))


def read(requests: Iterable[ReadRequest], reader: Reader, hold: int = 1) -> Generator[Raw]:
    """The bytes of requests in order, read ahead; an array is valid until `hold` more are taken.

    Raises:
        CheckpointError: in the place of the request that could not be read.
    """
    return prefetch(requests, reader, _READ_AHEAD, hold=hold)
