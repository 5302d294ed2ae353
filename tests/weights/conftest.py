import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _write_raw(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.fixture
def write_raw() -> Callable[..., Path]:
    """Writes a safetensors file byte by byte, so that it may be wrong."""
    return _write_raw
