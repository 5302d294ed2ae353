"""The findings as a page of Markdown: claims, thresholds, numbers, pictures, every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlsparse_ray.reproduce.claims import Finding
from rlsparse_ray.reproduce.claims.claim import FEW, Verdict
from rlsparse_ray.reproduce.evidence import Row
from rlsparse_ray.reproduce.phases import Outcome
from rlsparse_ray.reproduce.pictures import draw_all
from rlsparse_ray.reproduce.scale_file import packaged_scales
from rlsparse_ray.storage.local_files import write_file

_AFTER = {"1b": "sparsity", "3d": "overlap", "4c": "subnetwork", "6c": "dynamics", "7": "precision"}
"""After which claim a picture stands."""
_CAPTIONS = {
    "sparsity": "Sparsity of every run that learned, by algorithm",
    "overlap": "Overlap of every two runs over the uniform and the magnitude baseline",
    "subnetwork": "Gain in reward of subnetwork, random and complement training",
    "dynamics": "Sparsity along the checkpoints of runs",
    "precision": "Exact sparsity by the precision of training and of what is compared",
}


_TASKS = (
    "The tiny models, and those that a scale trains from scratch, answer sums or differences of "
    "two numbers below 100. The reward is 1 for exactly the right digits; rewards on this page are "
    "expected values, the probability of the right answer at temperature 1, over 2,000 sums or "
    "1,010 differences that no run trains on. SmolLM2 (scale `small`; its weights are dequantised "
    "from 4 bits) trains on 49 sums, and its reward is 1 if the first character of the answer is a "
    "digit, right or wrong; it is measured on 16 other sums."
)

_NEVER_RUN = "small"


def write_page(outcome: Outcome, scale: str, path: Path) -> None:
    """Write the page, and its pictures into img/ beside it. Equal findings give equal bytes."""
    pictures = draw_all(outcome.evidence, path.parent / "img", path.stem)
    lines = [*_head(outcome, scale), *_claims(outcome.findings, pictures, path.parent)]
    lines += [*_not_counted(outcome), *_runs(outcome)]
    write_file(path, ("\n".join(lines) + "\n").encode())


def _head(outcome: Outcome, scale: str) -> Iterator[str]:
    yield "# Do the papers' claims hold?"
    yield ""
    yield "Every claim, tested on runs that anybody can repeat without downloading anything:"
    yield ""
    yield "```console"
    yield f"$ rlsparse reproduce --scale {scale} --page docs/reproduction.md"
    yield "```"
    yield ""
    yield _where(outcome)
    yield ""
    yield f"{_bases(outcome)} {_TASKS} {_not_run(scale)}".strip()
    yield ""
    yield (
        "Models of this size say what happens on models of this size. A claim is judged by the "
        "threshold under it. The thresholds were set before the first runs; what was added later "
        "only asks more of the runs (in 3a to 3d, 4b, 4c, 5b, 5d, 5f and 5g, and that a verdict "
        f"from fewer than {FEW} runs, or comparisons of a setting, is in part at most). A run "
        f"whose reward rose by no more than {outcome.evidence.study.scale.margin:g} does not "
        "count. Numbers are means, with the smallest and the largest run in brackets. The large "
        "models behind the papers' figures are in the corpora that ship (`rlsparse plan paper`)."
    )
    yield ""
    verdicts = [found.measured.verdict for found in outcome.findings]
    counts = "; ".join(f"{v}: {verdicts.count(v)}" for v in Verdict if v in verdicts)
    yield f"{counts.capitalize()}."
    yield ""
    rows = [
        {
            "": found.claim.number,
            "claim": found.claim.text,
            "measured": found.measured.text,
            "runs": found.measured.runs,
            "verdict": f"**{found.measured.verdict}**",
        }
        for found in outcome.findings
    ]
    yield from _table(rows)


def _not_run(scale: str) -> str:
    others = sorted(packaged_scales().keys() - {scale, "quick"})
    names = ", ".join(f"`--scale {name}`" for name in others)
    never = f"; `{_NEVER_RUN}` was never run at all" if _NEVER_RUN in others else ""
    return f"Not run for this page: {names}{never}." if names else ""


def _bases(outcome: Outcome) -> str:
    """Which models all of it rests on, and how large they are."""
    sizes = {
        outcome.records[row["name"]]["run"]["base"]: row["numel"]
        for row in outcome.evidence.run_results
        if row["name"] in outcome.records
    }
    named = ", ".join(f"`{base}` ({numel:,} weights)" for base, numel in sorted(sizes.items()))
    return f"Every run starts from {'one of ' * (len(sizes) > 1)}{named}."


def _where(outcome: Outcome) -> str:
    session = outcome.session
    machine: Mapping[str, Any] = session.get("machine", {})
    made_by = [
        {**r["versions"], "rlsparse_ray": r["rlsparse_ray"]} for r in outcome.records.values()
    ]
    versions = ", ".join(
        f"{name} {' and '.join(sorted({one[name] for one in made_by}))}"
        for name in (made_by[0] if made_by else ())
    )
    gpus = ", ".join(machine.get("gpus", [])) or "no GPU"
    day = datetime.fromtimestamp(session.get("ended", 0), UTC).strftime("%Y-%m-%d")
    return (
        f"Made on {day}: {len(outcome.records)} runs in {session.get('seconds', 0) / 60:.0f} "
        f"minutes on {machine.get('processor', 'an unknown processor')}, "
        f"{machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')} GiB, {gpus}; "
        f"Python {machine.get('python', '?')}, {versions}."
    )


def _claims(
    findings: Sequence[Finding], pictures: Mapping[str, Path], folder: Path
) -> Iterator[str]:
    for found in findings:
        claim, measured = found.claim, found.measured
        yield from ("", f"## {claim.number}. {claim.text}: {measured.verdict}", "")
        yield f"- Published: {claim.published}."
        tested = measured.verdict is not Verdict.untested
        what = f"Measured, {measured.runs} runs" if tested else "Not tested"
        yield f"- {what}: {measured.text}."
        yield f"- Threshold: {claim.rule}."
        if measured.rows:
            yield from ("", *_table(measured.rows))
        picture = _AFTER.get(claim.number, "")
        if picture in pictures:
            place = pictures[picture].relative_to(folder).as_posix()
            yield from ("", f"![{_CAPTIONS[picture]}]({place})")


def _not_counted(outcome: Outcome) -> Iterator[str]:
    yield from ("", "## What does not count", "")
    idle = outcome.evidence.idle()
    if idle:
        yield f"{len(idle)} runs learned nothing, or less than the margin:"
        yield from ("", *_table([_idle_row(row) for row in idle]))
    else:
        yield "Every run learned."
    for name, why in sorted(outcome.failed.items()):
        yield f"- {name} failed: {why}"


def _idle_row(row: Row) -> Row:
    return {
        "run": row["name"],
        "reward before": f"{row['reward_before']:.4f}",
        "reward after": f"{row['reward_after']:.4f}",
        "sparsity, exact": f"{100 * row['sparsity']:.2f} %",
    }


def _runs(outcome: Outcome) -> Iterator[str]:
    rows = [_run_row(row, outcome.records) for row in outcome.evidence.run_results]
    yield from ("", "## Every run", "", "<details>", f"<summary>{len(rows)} rows</summary>", "")
    yield from (*_table(rows), "", "</details>")


def _run_row(row: Row, records: Mapping[str, Mapping[str, Any]]) -> Row:
    record = records.get(row["name"], {})
    return {
        "run": row["name"],
        "learning rate": f"{row['learning_rate']:g}",
        "steps": row["steps"],
        "reward before": f"{row['reward_before']:.4f}",
        "reward after": f"{row['reward_after']:.4f}",
        "sparsity, exact": f"{100 * row['sparsity']:.2f} %",
        "1e-5": f"{100 * row['sparsity_1e5']:.2f} %",
        "1e-4": f"{100 * row['sparsity_1e4']:.2f} %",
        "seconds": record.get("seconds", "-"),
    }


def _table(rows: Sequence[Row]) -> Iterator[str]:
    titles = list(rows[0])
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(_cell(row[title]) for title in titles) + " |"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
