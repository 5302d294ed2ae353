"""The maths: two tensors in, numbers and bits out. No files, no Ray."""

from rlsparse_ray.compare.cast import cast_bits
from rlsparse_ray.compare.criteria import COUNTED, Criterion, parse_criterion
from rlsparse_ray.compare.formats import FORMATS, Format
from rlsparse_ray.compare.scan import BaseScan, PairScan
from rlsparse_ray.compare.window import Backend, Request

__all__ = [
    "COUNTED",
    "FORMATS",
    "Backend",
    "BaseScan",
    "Criterion",
    "Format",
    "PairScan",
    "Request",
    "backend_for",
    "cast_bits",
    "parse_criterion",
]


def backend_for(device: str) -> Backend:
    """The backend that computes on `device`: cpu, cuda, cuda:1, ...

    Raises:
        ValueError: CUDA was asked for and torch finds no usable GPU.
    """
    if device == "cpu":
        from rlsparse_ray.compare.cpu import CpuBackend  # noqa: PLC0415 (compiles on first use)

        return CpuBackend()
    import torch  # noqa: PLC0415 (2 s that the CPU path need not pay)

    from rlsparse_ray.compare.torch_backend import TorchBackend  # noqa: PLC0415

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r}: torch finds no usable GPU; use --device cpu, or install a CUDA "
            f"build of torch and check `nvidia-smi`"
        )
    return TorchBackend(device)
