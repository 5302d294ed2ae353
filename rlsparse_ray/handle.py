"""A store to ask from Python: relations, data frames, masks as tensors.

with rlsparse_ray.open_store("s3://bucket/store") as store:
    store                                             # what it holds
    store.sql("FROM overlap_total($a, $b)", a="grpo-seed0", b="grpo-seed1").df()
    store.query("sparsity_by_pair").pl()
    store.mask("grpo-seed0", "layers.3.mlp.up_proj.weight")
    store.plot("overlap-matrix", show="o1")
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import duckdb
import numpy as np

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError
from rlsparse_ray.store import Store

if TYPE_CHECKING:
    import torch

    from rlsparse_ray.report import Chart

_OVERVIEW = """
SELECT name, family, algorithm, numel, 1 - changed / numel AS sparsity
FROM (
  SELECT pair_id, p.name, p.family, p.algorithm, p.numel, sum(c.changed) AS changed
  FROM pairs AS p JOIN counts AS c USING (pair_id)
  WHERE c.criterion = 'exact'
  GROUP BY ALL
)
ORDER BY name, pair_id
"""


class OpenStore:
    """The pairs of a store that were committed when it was opened; a context manager.

    Answers are DuckDB relations: `.to_arrow_table()` is Arrow, `.df()` pandas and `.pl()` Polars,
    where those are installed, and further SQL may stand on them. `.arrow()` is a reader of batches:
    until it is read to its end or deleted, the store answers nothing else.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = Store.open(place).root
        self.connection = sql.connect(self.place)

    def sql(self, text: str, **params: Any) -> duckdb.DuckDBPyRelation:
        """The answer of SQL over the views and macros; `params` are bound to $name.

        Raises:
            QueryError: with DuckDB's message.
        """
        with _refusals():
            return self.connection.sql(text, params=params or None)

    def query(self, name: str, **params: object) -> duckdb.DuckDBPyRelation:
        """The answer of a query of `queries/`, with its parameters.

        Raises:
            QueryError: no such query, or a missing or unknown parameter.
        """
        # computed now: a relation would read its parameters later, when others may be set
        given = {key: str(value) for key, value in params.items()}
        with _refusals():
            return self.connection.from_arrow(sql.run_query(self.connection, name, given))

    def mask(self, pair: str, tensor: str, criterion: str = "exact") -> "torch.Tensor":
        """Which parameters of a tensor changed.

        Args:
            pair: name or pair_id.
            tensor: canonical name, as in the table `tensors`.
            criterion: the rule that says "changed"; masks are kept of those the corpus named.

        Returns:
            bool, in the shape that was compared; True where changed.

        Raises:
            QueryError: there is no such pair, tensor or mask, or several pairs of that name.
        """
        import torch  # noqa: PLC0415 - a second, and only masks need it

        pair_id = self._pair_id(pair)
        found = self._rows(
            "SELECT t.shape, b.numel, b.bits FROM tensors AS t "
            "JOIN masks AS b USING (pair_id, tensor_key) "
            "WHERE pair_id = $pair_id AND t.tensor = $tensor AND b.criterion = $criterion "
            "ORDER BY b.block",
            pair_id=pair_id,
            tensor=tensor,
            criterion=criterion,
        )
        if not found:
            raise QueryError(self._why_no_mask(pair_id, tensor, criterion))
        blocks = [
            np.unpackbits(np.frombuffer(bits, np.uint8), count=numel, bitorder="little")
            for _, numel, bits in found
        ]
        return torch.from_numpy(np.concatenate(blocks)).bool().reshape(found[0][0])

    def plot(self, figure: str, **choices: str) -> "Chart":
        """A figure of the report, which a notebook shows and whose `write` makes a file.

        Args:
            figure: its name; `rlsparse plot` lists them.
            choices: by the name of a switch or filter, what to choose; else the first.

        Raises:
            QueryError: no such figure or choice, or there is nothing to draw yet.
        """
        from rlsparse_ray.report.plot import chart_of  # noqa: PLC0415 - numba, V8: only for figures

        return chart_of(self.connection, self.place, figure, choices)

    def close(self) -> None:
        """End the session."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        with _refusals():
            return f"store {self.place}\n{self.sql(_OVERVIEW)}"

    def _repr_html_(self) -> str:
        answer = self.sql(_OVERVIEW)
        head = "".join(f"<th>{escape(name)}</th>" for name in answer.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_text(value))}</td>" for value in row) + "</tr>"
            for row in self._rows(_OVERVIEW)
        )
        caption = f"<caption>store {escape(self.place)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _pair_id(self, pair: str) -> str:
        return self._column("SELECT pair_id_of($pair)", pair=pair)[0]

    def _why_no_mask(self, pair: str, tensor: str, criterion: str) -> str:
        tensors = self._column("SELECT tensor FROM tensors WHERE pair_id = $pair", pair=pair)
        if tensor not in tensors:
            return f"pair {pair} has no tensor {tensor!r}{_nearest(tensor, tensors)}"
        kept = self._column("SELECT unnest(criteria) FROM pairs WHERE pair_id = $pair", pair=pair)
        if criterion not in kept:
            return f"pair {pair} keeps no masks of {criterion!r}, only of {', '.join(kept)}"
        return f"tensor {tensor} of pair {pair} was not compared: see its status in `tensors`"

    def _column(self, text: str, **params: Any) -> list[str]:
        return [str(value) for (value,) in self._rows(text, **params)]

    def _rows(self, text: str, **params: Any) -> list[tuple[Any, ...]]:
        with _refusals():
            rows: list[tuple[Any, ...]] = self.sql(text, **params).fetchall()
        return rows


def open_store(place: str | Path) -> OpenStore:
    """Open a store, a folder or an address, to ask it from Python or a notebook.

    Raises:
        StoreError: not a store, or one without a committed pair.
    """
    return OpenStore(place)


@contextmanager
def _refusals() -> Iterator[None]:
    """DuckDB's errors as ours, with the fix for that of a session whose answer is being read."""
    try:
        yield
    except (duckdb.Error, QueryError) as error:
        said = str(error)
        if "connection has an open result" in said:
            said = (
                "an answer of this store is still being read: read what `.arrow()` gave to its end "
                "or delete it, or take `.to_arrow_table()`, which has all rows at once"
            )
        raise QueryError(said) from error


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.4)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _text(value: object) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else "" if value is None else f"{value}"
