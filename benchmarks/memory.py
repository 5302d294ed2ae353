"""What the benchmarks share: how much memory the workers took."""

from pathlib import Path

import psutil


def worker_peak() -> int:
    """Bytes: the largest VmHWM of a Ray worker of this session that ran tasks."""
    peaks = [0]
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name().startswith("ray::"):
                status = Path(f"/proc/{child.pid}/status").read_text()
                line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
                peaks.append(int(line.split()[1]) << 10)
        except (psutil.NoSuchProcess, FileNotFoundError):
            continue
    return max(peaks)
