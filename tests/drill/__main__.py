"""Face every fault, or those that are named, and print the table."""

import sys
import tempfile
from pathlib import Path

import pyarrow as pa

from rlsparse_ray import console
from tests.drill.drill import Result, drill
from tests.drill.faults import FAULTS, can_mount


def main(names: list[str]) -> int:
    """The exit code: 0 if every store was as it should be."""
    if unknown := [name for name in names if name not in FAULTS]:
        console.err.print(f"no fault {unknown[0]!r}: there are {', '.join(FAULTS)}")
        return 2
    results = []
    with tempfile.TemporaryDirectory(prefix="rlsparse-drill-") as folder, drill(Path(folder)) as on:
        for name in names or FAULTS:
            if name == "disk full" and not can_mount():
                console.err.print("disk full: left out, only root can mount a small disk")
                continue
            console.err.print(f"{name} ...")
            results.append(on.face(FAULTS[name]))
    console.print_table(pa.Table.from_pylist([_row(result) for result in results]))
    again = [result.fault for result in results if result.finished_again]
    console.out.print(
        f"done again although it was finished: {', '.join(again)}"
        if again
        else "every store is what an undisturbed run gives, audits are clean, "
        "and nothing that was finished was read again"
    )
    return 1 if again else 0


def _row(result: Result) -> dict[str, object]:
    return {
        "fault": result.fault,
        "runs": " ".join(map(str, result.exit_codes)),
        "finished": result.finished,
        "lost": result.lost,
        "redone": result.redone,
        "redone_bytes": result.redone_bytes,
        "finished_read_again_bytes": result.finished_again,
        "seconds": round(result.seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
