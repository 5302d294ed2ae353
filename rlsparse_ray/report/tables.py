"""The tables of the page: families with intervals, what to distrust, and where all is from."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray.report.table import Table, count, decimal, percent, text

DISTRUST = "What to distrust"
PROVENANCE = "Where the numbers are from"


def _suspects(answer: pa.Table) -> pa.Table:
    return answer.filter(pc.not_equal(answer["suspicion"], "unknown"))


def _unsampled(answer: pa.Table) -> pa.Table:
    return answer.filter(pc.equal(answer["suspicion"], "unknown"))


def _left_out(answer: pa.Table) -> pa.Table:
    partial = pc.greater(answer["tensors_partial"], 0)
    return answer.filter(pc.or_(pc.greater(answer["tensors_not_compared"], 0), partial))


TABLES: tuple[Table, ...] = (
    Table(
        name="families",
        section="How sparse",
        title="Families and algorithms, with intervals",
        caption=(
            "Sparsity is weighted by parameters; the interval is a 95 % bootstrap over runs, "
            "absent for one run and too narrow for a few. The median counts every run once."
        ),
        query="sparsity_by_family",
        columns={
            "family": ("Family", text),
            "algorithm": ("Algorithm", text),
            "stage": ("Stage", text),
            "pairs": ("Runs", count),
            "sparsity": ("Sparsity", percent),
            "sparsity_low": ("from", percent),
            "sparsity_high": ("to", percent),
            "median_sparsity_over_pairs_unweighted": ("Median run", percent),
            "min_sparsity_of_a_pair": ("Lowest", percent),
            "max_sparsity_of_a_pair": ("Highest", percent),
        },
        empty="rlsparse extract CORPUS.yaml --store {store}",
    ),
    Table(
        name="published",
        section="How sparse",
        title="Published figures, measured again",
        caption=(
            "At the tolerance that the corpus names for the figure, else at 1e-5. The last column "
            "is the exact sparsity of the same weights."
        ),
        query="paper_table_sparsity",
        columns={
            "name": ("Pair", text),
            "algorithm": ("Algorithm", text),
            "criterion": ("Criterion", text),
            "reported_sparsity": ("Reported", percent),
            "measured_sparsity": ("Measured", percent),
            "sparsity_difference": ("Difference", percent),
            "sparsity_exact": ("Exact", percent),
            "source": ("Source", text),
        },
        empty="no pair of this corpus says what was reported (reported_sparsity)",
    ),
    Table(
        name="failed",
        section=DISTRUST,
        title="Pairs that failed",
        caption=(
            "In the last refresh of each corpus, and what is shown of each on this page: nothing, "
            "the revision from before that refresh, or the pair as it was extracted since."
        ),
        query="failed_pairs",
        columns={
            "name": ("Pair", text),
            "shown": ("Shown", text),
            "message": ("Why", text),
            "corpus": ("Corpus", text),
            "started_at": ("When (UTC)", text),
        },
        empty=(
            "None on record. Only refreshes keep a record of failures: rlsparse refresh "
            "CORPUS.yaml --store {store}"
        ),
        empty_is_good=True,
    ),
    Table(
        name="suspects",
        section=DISTRUST,
        title="Pairs that may be no pairs",
        caption=(
            "The tuned model seems to come from another base, or is the base itself. A lineage "
            "score is the mean cosine of a few sampled matrices: above 0.97 for any training "
            "measured, below 0.05 for unrelated models."
        ),
        query="suspect_pairs",
        shape=_suspects,
        columns={
            "name": ("Pair", text),
            "suspicion": ("Suspicion", text),
            "lineage_score": ("Lineage", decimal),
            "relative_distance": ("Distance", decimal),
            "base_source": ("Base", text),
            "tuned_source": ("Tuned", text),
        },
        empty="None: every pair whose weights were sampled looks like one.",
        empty_is_good=True,
    ),
    Table(
        name="unsampled",
        section=DISTRUST,
        title="Pairs whose lineage is unknown",
        caption=(
            "They have no lineage score: adapters, weights stored with scales, or pairs that were "
            "extracted before there was one."
        ),
        query="suspect_pairs",
        shape=_unsampled,
        columns={
            "name": ("Pair", text),
            "relative_distance": ("Distance", decimal),
            "base_source": ("Base", text),
            "tuned_source": ("Tuned", text),
        },
        empty="None.",
        empty_is_good=True,
    ),
    Table(
        name="left-out",
        section=DISTRUST,
        title="Weights that could not be compared",
        caption="Tensors that only one side has, or whose shapes differ: in no sparsity here.",
        query="sparsity_by_pair",
        shape=_left_out,
        columns={
            "name": ("Pair", text),
            "tensors": ("Tensors compared", count),
            "tensors_partial": ("in part", count),
            "tensors_not_compared": ("not compared", count),
            "numel": ("Weights compared", count),
            "numel_not_compared": ("not compared", count),
        },
        empty="None: both sides of every pair have the same tensors.",
        empty_is_good=True,
    ),
    Table(
        name="repeated",
        section=DISTRUST,
        title="Runs that are there twice",
        caption=(
            "Another pair has the same tuned model, under another name or against another base. "
            "The numbers on top count each tuned model once. The figures show every pair: two of "
            "one tuned model share what they share because they are one run, so their overlap "
            "says nothing about chance."
        ),
        query="repeated_runs",
        columns={
            "name": ("Pair", text),
            "counts_as": ("Counted as", text),
            "base_source": ("Base", text),
            "tuned_source": ("Tuned", text),
        },
        empty="None: every run has a tuned model of its own.",
        empty_is_good=True,
    ),
    Table(
        name="uncounted",
        section=DISTRUST,
        title="Runs with overlaps that were not counted",
        caption=(
            "With how many runs on the same base the overlap is counted, and with how many it is "
            "not: one of the two was extracted later. They are in no overlap on this page. "
            "rlsparse overlap counts what is missing."
        ),
        query="uncounted_overlaps",
        columns={
            "name": ("Run", text),
            "counted": ("Counted", count),
            "not_counted": ("Not counted", count),
            "base_source": ("Base", text),
        },
        empty="None: the overlaps of all runs on one base are counted.",
        empty_is_good=True,
    ),
    Table(
        name="refreshes",
        section=PROVENANCE,
        title="Refreshes",
        caption="What each run of rlsparse refresh did, the last one first.",
        query="refreshes",
        columns={
            "started_at": ("When (UTC)", text),
            "corpus": ("Corpus", text),
            "pairs": ("Pairs", count),
            "added": ("Added", count),
            "moved": ("Moved", count),
            "failed": ("Failed", count),
            "audits": ("Audits", count),
            "findings": ("Findings", count),
        },
        empty="none on record: this store was filled by rlsparse extract",
    ),
    Table(
        name="pairs",
        section=PROVENANCE,
        title="Pairs, models and revisions",
        caption=(
            "A revision is a commit, or a fingerprint of the files of a folder: the same revisions "
            "give the same numbers."
        ),
        query="provenance",
        columns={
            "name": ("Pair", text),
            "base_source": ("Base", text),
            "base_revision": ("Revision", text),
            "base_dtype": ("Dtype", text),
            "tuned_source": ("Tuned", text),
            "tuned_revision": ("Revision", text),
            "tuned_dtype": ("Dtype", text),
            "numel": ("Weights", count),
            "software_version": ("rlsparse_ray", text),
            "created_at": ("Committed (UTC)", text),
            "pair_id": ("pair_id", text),
        },
        empty="rlsparse extract CORPUS.yaml --store {store}",
    ),
)


def doubts_of(answers: Callable[[str], pa.Table]) -> dict[str, int]:
    """How many rows each table of doubts has, by its anchor."""
    of_doubt = [t for t in TABLES if t.section == DISTRUST]
    return {t.name: t.rows(answers(t.query)).num_rows for t in of_doubt}
