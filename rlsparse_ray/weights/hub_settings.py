"""The hub's own settings, read from the environment when they are asked for.

huggingface_hub reads them once, when it is imported; what it read then is the default here.
"""

import os
from pathlib import Path

from huggingface_hub import constants


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether only the local cache may be used: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    # once imported as offline, huggingface_hub itself refuses every request
    return constants.HF_HUB_OFFLINE or said.upper() in constants.ENV_VARS_TRUE_VALUES


def cache_folder() -> Path:
    """The local cache: HF_HUB_CACHE, else the folder `hub` in HF_HOME."""
    said = os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
    return Path(os.path.expandvars(said)).expanduser()
