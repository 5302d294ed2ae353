"""What a store answers to the figures: asked and counted once however many figures rest on it."""

import duckdb
import pyarrow as pa

from rlsparse_ray import sql
from rlsparse_ray.report.figure import Count, Figure


class Answers:
    """The answers of named queries over one session, and the rows of figures."""

    def __init__(self, con: duckdb.DuckDBPyConnection, store: str) -> None:
        self.store = store
        self._con = con
        self._known: dict[str, pa.Table] = {}
        self._counted: dict[tuple[str, Count], pa.Table] = {}

    def __call__(self, query: str) -> pa.Table:
        """The answer of a query with its default parameters.

        Raises:
            QueryError: what DuckDB has to say.
        """
        if query not in self._known:
            self._known[query] = sql.run_query(self._con, query)
        return self._known[query]

    def rows(self, figure: Figure) -> pa.Table:
        """What a figure draws: the answer, with what is counted from masks for it, in its shape."""
        answer = figure.ask(self._con) if figure.ask else self(figure.query)
        if figure.count is not None:
            key = (figure.query, figure.count)
            if key not in self._counted:
                self._counted[key] = figure.count(answer, self._con, self.store)
            answer = self._counted[key]
        return figure.shape(answer).select(list(figure.columns))
