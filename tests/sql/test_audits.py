"""A clean store passes every audit, and for each there is a damage that it sees."""

from collections.abc import Callable
from typing import Any

import pytest

from rlsparse_ray import sql
from tests.sql.conftest import REFRESHES, refresh_path

SEED0 = "pair_id=grpo-seed0-0"
EXACT = f"masks/{SEED0}/criterion=exact/part-00000.parquet"
OVERLAPS = "overlaps/pair_b=grpo-seed0-0/overlaps.parquet"
SPECTRA = "spectra/pair_id=grpo-seed0-0/spectra.parquet"
REFRESH = refresh_path(REFRESHES[0])
FINDING = {"check": "mask_popcount", "pair_id": "grpo-seed0-0", "problem": "odd"}
Rows = list[dict[str, Any]]


def put(row: int, **values: Any) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        rows[row].update(values)
        return rows

    return change


def grow(row: int, column: str, by: int) -> Callable[[Rows], Rows]:
    return lambda rows: put(row, **{column: rows[row][column] + by})(rows)


def without(row: int) -> Callable[[Rows], Rows]:
    return lambda rows: rows[:row] + rows[row + 1 :]


def twice(row: int) -> Callable[[Rows], Rows]:
    return lambda rows: [*rows, dict(rows[row])]


def with_bits(row: int, change: Callable[[bytearray], Any]) -> Callable[[Rows], Rows]:
    def edit(rows: Rows) -> Rows:
        bits = bytearray(rows[row]["bits"])
        change(bits)
        return put(row, bits=bytes(bits))(rows)

    return edit


def with_overlap(row: int, **values: Any) -> Callable[[Rows], Rows]:
    """Change the first mask overlap of a row of spectra."""

    def edit(rows: Rows) -> Rows:
        first, *rest = rows[row]["mask_overlaps"]
        return put(row, mask_overlaps=[first | values, *rest])(rows)

    return edit


def flip(byte: int, bit: int) -> Callable[[bytearray], None]:
    def change(bits: bytearray) -> None:
        bits[byte] ^= 1 << bit

    return change


def without_tensor(name: str) -> Callable[[Rows], Rows]:
    return lambda rows: [r for r in rows if r["tensor"] != name]


def part(table: str) -> str:
    return f"{table}/{SEED0}/{table}.parquet"


def swapped(column: str) -> Callable[[Rows], Rows]:
    """Exchange the exact and the abs:1e-8 counts of the first tensor."""

    def change(rows: Rows) -> Rows:
        rows[0][column], rows[1][column] = rows[1][column], rows[0][column]
        return rows

    return change


# The last block of the first tensor has 4,457 parameters: 558 bytes, of the last one 1 bit.
DAMAGES = {
    "changed_exceeds_numel": [
        (part("counts"), put(0, changed=10**9)),
        (part("strata"), put(0, changed=-1)),
        (part("steps"), put(0, numel=-1)),
        (EXACT, put(0, changed=65_537)),
    ],
    "mask_bits_length": [
        (EXACT, with_bits(1, lambda bits: bits.pop())),
        (EXACT, with_bits(0, lambda bits: bits.append(0))),
        (EXACT, put(1, bits=b"")),
    ],
    "mask_padding_bits": [
        (EXACT, with_bits(1, flip(-1, 7))),
        (EXACT, with_bits(1, flip(-1, 1))),
    ],
    "mask_popcount": [(EXACT, with_bits(0, flip(17, 3))), (EXACT, grow(0, "changed", 1))],
    "mask_against_counts": [
        (EXACT, grow(0, "changed", 1)),
        (EXACT, without(1)),
        (part("counts"), grow(0, "changed", -1)),
    ],
    "missing_blocks": [
        (EXACT, without(0)),
        (EXACT, twice(0)),
        (EXACT, grow(0, "numel", -1)),
        (EXACT, put(1, block=2)),
    ],
    "strata_against_counts": [
        (part("strata"), without(0)),
        (part("strata"), grow(0, "changed", 1)),
    ],
    "margins_against_counts": [
        (part("margins"), put(0, changed_per_row=[])),
        (part("margins"), grow(0, "changed_per_column", [0])),
        (part("margins"), put(2, changed_per_row=[18] * 33)),
    ],
    "steps_against_counts": [
        (part("steps"), grow(0, "numel", 1)),
        (part("steps"), without(1)),
        (part("steps"), put(1, ulp_low=9)),
    ],
    "duplicate_keys": [
        (part(table), twice(0)) for table in ("tensors", "counts", "strata", "margins", "steps")
    ]
    + [
        (EXACT, twice(0)),
        (f"pairs/{SEED0}/pairs.parquet", twice(0)),
        (OVERLAPS, twice(0)),
        (SPECTRA, twice(0)),
    ],
    "tolerance_monotone": [
        (part("counts"), swapped("changed")),
        (part("counts"), grow(4, "changed", 69_993)),
        (part("counts"), grow(7, "changed", 69_993)),
    ],
    "unknown_tensor": [
        (part("tensors"), without(0)),
        (part("tensors"), put(0, status="base_only")),
        (part("counts"), grow(0, "numel", 1)),
    ],
    "pairs_totals": [
        (part("tensors"), without(0)),
        (f"pairs/{SEED0}/pairs.parquet", grow(0, "numel", 1)),
        (f"pairs/{SEED0}/pairs.parquet", put(0, tensors_tied=None)),
        ("pairs/pair_id=dpo-0/pairs.parquet", grow(0, "numel_base_only", -1)),
        ("pairs/pair_id=dpo-0/pairs.parquet", put(0, numel_mismatched=0)),
    ],
    "incomplete_tables": [
        (part("counts"), without(3)),
        (part("counts"), without_tensor("norm.weight")),
        (part("strata"), without_tensor("norm.weight")),
        (part("steps"), without_tensor("norm.weight")),
        (part("margins"), without(0)),
        (EXACT, without(2)),
    ],
    "overlap_identity": [
        (part("counts"), grow(0, "changed", 1)),
        (EXACT, grow(0, "changed", 1)),
        (OVERLAPS, grow(0, "shared", -1)),
    ],
    "overlaps_against_counts": [
        (OVERLAPS, put(0, shared=10**9)),
        (OVERLAPS, put(0, shared=-1)),
        (OVERLAPS, grow(0, "changed_a", 1)),
        (OVERLAPS, grow(0, "numel", 1)),
        (OVERLAPS, put(0, blocks=2)),
        (OVERLAPS, put(0, sample_fraction=None)),
        (OVERLAPS, put(0, blocks_total=3, blocks=3)),
        (OVERLAPS, put(0, shared_standard_error=0.5)),
        (OVERLAPS, grow(0, "expected_tensor", 1)),
        (OVERLAPS, put(0, tensor_key="odd [1]")),
        (OVERLAPS, put(0, pair_a="grpo-seed1-0")),
        (OVERLAPS, without(0)),
        (part("counts"), grow(0, "changed", 1)),
    ],
    "spectra_within_bounds": [
        (SPECTRA, change)
        for change in (
            grow(1, "changed", 1),
            grow(1, "numel", -1),
            put(1, method=None),
            put(1, status="unchanged"),
            put(1, matrix_rank=99),
            put(1, matrix_rank=3, matrix_rank_at_least=4),
            put(1, energy_rank_90=17, energy_rank_99=16),
            put(1, matrix_rank=17, rank_1e6=16),
            put(1, stable_rank=0.5),
            put(1, effective_rank=17.1),
            put(2, outside_share=1.01),
            put(2, inside_left_share=-0.01),
            put(1, nss=1.0),
            put(2, k=19),
            put(2, angles_left=[2.0] * 20),
            with_overlap(2, shared=10**6),
            with_overlap(2, shared=-1),
            put(1, matrix=1),
            put(1, tensor_key="odd [1]"),
        )
    ],
    "density_not_sparsity": [
        (f"pairs/{SEED0}/pairs.parquet", put(0, reported_sparsity=0.1)),
        (f"pairs/{SEED0}/pairs.parquet", put(0, reported_sparsity=70.0)),
        (f"pairs/{SEED0}/pairs.parquet", put(0, reported_sparsity=-0.1)),
    ],
    "refreshes_add_up": [
        (REFRESH, put(0, unchanged=2)),
        (REFRESH, put(0, pairs=3)),
        (REFRESH, put(0, ok=True)),
        (REFRESH, put(0, ok=None)),
        (REFRESH, put(0, bytes_read=-1)),
        (REFRESH, put(0, failed=[{"name": "sft", "message": "twice"}])),
        (refresh_path(REFRESHES[1]), put(0, bytes_read=1)),
        (refresh_path(REFRESHES[1]), put(0, findings=[FINDING])),
    ],
    "unlisted_files": [
        (f"pairs/{SEED0}/pairs.parquet", lambda rows: put(0, parts=rows[0]["parts"][:-1])(rows)),
    ],
}


def test_every_audit_has_a_damage():
    assert DAMAGES.keys() == sql.audits().keys()


def test_a_clean_store_passes(con):
    results = sql.run_audits(con)
    assert [name for name, _ in results] == sorted(DAMAGES)
    assert [(name, rows.to_pylist()) for name, rows in results if rows.num_rows] == []


@pytest.mark.parametrize("audit", DAMAGES)
def test_audit_sees_its_damages(damaged, audit):
    text = sql.audits()[audit].text
    for path, change in DAMAGES[audit]:
        file = damaged.place / path
        before = file.read_bytes()
        damaged.edit(path, change)
        con = sql.connect(damaged.place)
        rows = sql.run_sql(con, text)
        assert rows.column_names[:2] == ["problem", "pair_id"]
        assert rows.num_rows > 0, (path, DAMAGES[audit].index((path, change)))
        con.close()
        file.write_bytes(before)


@pytest.mark.parametrize("damage", DAMAGES["mask_bits_length"])
def test_other_audits_run_on_bits_of_a_wrong_length(damaged, damage):
    damaged.edit(*damage)
    failed = {name for name, rows in sql.run_audits(sql.connect(damaged.place)) if rows.num_rows}
    assert "mask_bits_length" in failed


def test_overlap_refuses_masks_that_lack_a_block(damaged):
    damaged.edit(EXACT, without(1))
    con = sql.connect(damaged.place)
    with pytest.raises(sql.QueryError, match=r"lack blocks in grpo-seed0-0 or .*rlsparse verify"):
        sql.run_query(con, "overlap_matrix")
