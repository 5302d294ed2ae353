"""Versions of the schemas, and the columns that several tables have."""

import pyarrow as pa

SCHEMA_VERSION = 3
"""Raised whenever a column is added or changes its meaning, its type or its name."""

PAIR_VERSION = 2
"""The schema version in which what is extracted of a pair last changed. Ids of pairs rest on it:
raising it means that every pair is extracted again."""

VERSION_KEY = b"rlsparse_schema_version"


def table(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    """The schema of some columns: name, type and a sentence on each."""
    fields = [pa.field(n, t, metadata={"doc": doc}) for n, t, doc in columns]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


DICT = pa.dictionary(pa.int32(), pa.string())
TENSOR = ("tensor", DICT, "canonical name: prefixes such as `model.` removed")
KEY = ("tensor_key", DICT, "canonical name and compared shape; the only key to join pairs on")
CRITERION = ("criterion", DICT, "rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...")

PART = pa.struct(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("xxh3", pa.string()),
    ]
)


def texts(*names: str) -> pa.DataType:
    """A struct of texts."""
    return pa.struct([(name, pa.string()) for name in names])
