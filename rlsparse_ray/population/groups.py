"""A group of pairs: who belongs to it, what all of them compared, and what chance expects of it."""

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.consensus import expected_histogram
from rlsparse_ray.errors import QueryError, StoreError


@dataclass(frozen=True, slots=True)
class Group:
    """The pairs of a consensus and the tensors that all of them compared in the same shape."""

    criterion: str
    where: str
    members: tuple[str, ...]
    names: tuple[str, ...]
    tensors: dict[str, int]
    """tensor_key to parameters."""
    left_out: dict[str, int]
    """The same of tensors that only some of the members compared."""

    @property
    def numel(self) -> int:
        """Parameters that are compared across the members."""
        return sum(self.tensors.values())


def group_of(con: duckdb.DuckDBPyConnection, where: str, criterion: str) -> Group:
    """The pairs for which `where` holds. It is SQL of the user's own and runs as it stands.

    Raises:
        QueryError: DuckDB refuses the condition, fewer than two pairs meet it, or they have no
            tensor in common.
        StoreError: a member keeps no masks of the criterion.
    """
    try:
        chosen = con.sql(f"SELECT pair_id FROM pairs WHERE {where}")
        ids = [] if chosen is None else sorted({str(row[0]) for row in chosen.fetchall()})
    except duckdb.Error as error:
        raise QueryError(f"the condition over pairs: {error}") from error
    if len(ids) < 2:
        met = "1 pair meets" if len(ids) == 1 else "no pair meets"
        raise QueryError(
            f"{met} the condition ({where}); a group takes two or more: `rlsparse query "
            'consensus_groups` lists groups, `rlsparse sql "FROM pairs"` what a condition may name'
        )
    rows = con.execute(
        "SELECT name, list_contains(criteria, $1) FROM pairs WHERE pair_id IN (SELECT unnest($2)) "
        "ORDER BY pair_id",
        [criterion, ids],
    ).fetchall()
    lacking = [name for name, kept in rows if not kept]
    if lacking:
        kept = con.execute(
            "SELECT DISTINCT unnest(criteria) AS kept FROM pairs "
            "WHERE pair_id IN (SELECT unnest($1)) ORDER BY kept",
            [ids],
        ).fetchall()
        raise StoreError(
            f"no masks of criterion {criterion} are kept of: {', '.join(lacking)}; masks are kept "
            f"of {', '.join(name for (name,) in kept)} (`criteria` under `settings` of the corpus)"
        )
    tensors = con.execute(
        "SELECT tensor_key, any_value(numel), count(*) FROM counts WHERE criterion = $1 "
        "AND numel > 0 AND pair_id IN (SELECT unnest($2)) GROUP BY tensor_key ORDER BY tensor_key",
        [criterion, ids],
    ).fetchall()
    names = tuple(name for name, _ in rows)
    common = {key: numel for key, numel, members in tensors if members == len(ids)}
    if not common:
        raise QueryError(f"no tensor of the same name and shape is in all of: {', '.join(names)}")
    left_out = {key: numel for key, numel, members in tensors if members < len(ids)}
    return Group(criterion, where, tuple(ids), names, common, left_out)


def expected_of(
    con: duckdb.DuckDBPyConnection, group: Group
) -> tuple[dict[str, npt.NDArray[np.float64] | None], str]:
    """Chance histograms [N + 1] of the members: uniform, tensor and magnitude.

    Returns:
        One a baseline, None where it is not defined; and why `magnitude` is not, or nothing.
    """
    found: dict[str, npt.NDArray[np.float64] | None] = {}
    changed, numel = _strata(con, group, "counts", "tensor_key")
    total = changed.sum(axis=0, keepdims=True)
    found["uniform"] = expected_histogram(total, numel.sum(keepdims=True))
    found["tensor"] = expected_histogram(changed, numel)
    undefined = _undefined(con, group)
    if undefined:
        return found | {"magnitude": None}, undefined
    finer, sizes = _strata(con, group, "strata", "exponent")
    # tensors of integers have no exponents: they are one stratum each
    rest = {key for key, size in group.tensors.items() if size} - _keys(con, group)
    flat, flat_sizes = _strata(con, group, "counts", "tensor_key", rest)
    found["magnitude"] = expected_histogram(
        np.concatenate([finer, flat]), np.concatenate([sizes, flat_sizes])
    )
    return found, ""


def _strata(
    con: duckdb.DuckDBPyConnection,
    group: Group,
    table: str,
    by: str,
    keys: set[str] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Changed [S, N] and parameters [S] of the strata of the common tensors, in order: sums of
    doubles depend on it.
    """
    rows = con.execute(
        f"SELECT any_value(numel), list(changed ORDER BY pair_id) FROM {table} "
        "WHERE criterion = $1 AND pair_id IN (SELECT unnest($2)) "
        "AND tensor_key IN (SELECT unnest($3)) "
        f"GROUP BY tensor_key, {by} ORDER BY tensor_key, {by}",
        [group.criterion, list(group.members), list(group.tensors if keys is None else keys)],
    ).fetchall()
    shape = (len(rows), len(group.members))
    changed = np.array([row[1] for row in rows], np.int64).reshape(shape)
    return changed, np.array([row[0] for row in rows], np.int64)


def _keys(con: duckdb.DuckDBPyConnection, group: Group) -> set[str]:
    rows = con.execute(
        "SELECT DISTINCT tensor_key FROM strata WHERE criterion = $1 "
        "AND pair_id IN (SELECT unnest($2))",
        [group.criterion, list(group.members)],
    ).fetchall()
    return {row[0] for row in rows}


def _undefined(con: duckdb.DuckDBPyConnection, group: Group) -> str:
    """Why the strata of the members are not the same parameters; empty if they are."""
    bases = con.execute(
        "SELECT count(*) FILTER (WHERE bases > 1) FROM (SELECT count(DISTINCT base_xxh3) AS bases "
        "FROM tensors WHERE tensor_key IN (SELECT unnest($1)) AND pair_id IN (SELECT unnest($2)) "
        "GROUP BY tensor_key)",
        [list(group.tensors), list(group.members)],
    ).fetchall()[0][0]
    if bases:
        return f"the base weights of {bases} of {len(group.tensors)} tensors differ"
    uneven = con.execute(
        "SELECT count(*) FROM (SELECT tensor_key, exponent FROM strata WHERE criterion = $1 "
        "AND tensor_key IN (SELECT unnest($2)) AND pair_id IN (SELECT unnest($3)) "
        "GROUP BY ALL HAVING count(*) <> $4 OR min(numel) <> max(numel))",
        [group.criterion, list(group.tensors), list(group.members), len(group.members)],
    ).fetchall()[0][0]
    return "the pairs were compared in different dtypes" if uneven else ""
