"""The packages that training needs and measuring does not: said at once when they are missing."""

from importlib.util import find_spec

from rlsparse_ray.errors import RlsparseError

TRAINERS = ("accelerate", "datasets", "gguf", "safetensors", "transformers", "trl")
"""Modules of the extra `demo`, which has those of `train`: as pyproject.toml lists them."""


def require_trainers() -> None:
    """Check that what trains models is installed; finds the packages and imports none.

    Raises:
        RlsparseError: some are missing; the message names them and the command that installs them.
    """
    missing = [name for name in TRAINERS if find_spec(name) is None]
    if missing:
        raise RlsparseError(
            f"training needs packages that are not installed: {', '.join(missing)}. Install them: "
            "pip install 'rlsparse-ray[demo]' (in a checkout: pip install '.[demo]')"
        )
