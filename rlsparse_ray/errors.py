"""The errors a user can meet. Each message names the thing, the place and the fix."""


class RlsparseError(Exception):
    """Base of every error that rlsparse raises on purpose; the CLI prints no traceback."""


class CorpusError(RlsparseError):
    """The corpus file is wrong: the message gives its path, line and what to write instead."""


class CheckpointError(RlsparseError):
    """A checkpoint cannot be read or compared. It fails its pairs; other pairs go on."""


class StoreError(RlsparseError):
    """The store cannot be read or written. It stops the run: nothing could be kept."""


class NoStoreError(StoreError):
    """There is no store at a place."""

    place: str = ""


class QueryError(RlsparseError):
    """No such query, a wrong or missing parameter, or SQL that DuckDB refuses."""


class TrainingError(RlsparseError):
    """A subnetwork does not fit the model, or the optimizer state not the subnetwork."""


class RunError(RlsparseError):
    """A training run cannot be made as its fields say; the message names the field and the fix."""


class PatchError(RlsparseError):
    """A patch cannot be made, read or applied: wrong models, a damaged file, no place to write."""


class ScaleError(RlsparseError):
    """A scale file is wrong: the message gives its path, line and what to write instead."""
