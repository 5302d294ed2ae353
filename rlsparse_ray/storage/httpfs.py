"""DuckDB's own way to S3: the extension httpfs, and a secret made from the environment."""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import duckdb


def load_httpfs(con: duckdb.DuckDBPyConnection, address: str) -> bool:
    """Load httpfs and tell it how to reach the bucket of an s3:// address; False if that cannot be.

    It cannot without the extension (`INSTALL httpfs`, or the package duckdb-extension-httpfs of
    DuckDB's own version), for credentials that are in no variable (those of a cloud machine's
    role, or of other clouds), and for an address with the characters of patterns: httpfs takes what
    follows a `?` for options, and lists the bucket anew for each file that has a `[`, minutes long.
    """
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    if not address.startswith("s3://") or not keys <= os.environ.keys():
        return False
    if any(character in address for character in "*?["):
        return False
    if not any(_loads(con, name) for name in _extensions()):
        return False
    con.execute(secret(address, os.environ))
    return True


def secret(address: str, environment: Mapping[str, str]) -> str:
    """The statement that lets DuckDB read the bucket of an address."""
    options = {
        "SCOPE": quoted("/".join(address.split("/")[:3])),
        "KEY_ID": quoted(environment["AWS_ACCESS_KEY_ID"]),
        "SECRET": quoted(environment["AWS_SECRET_ACCESS_KEY"]),
    }
    token = environment.get("AWS_SESSION_TOKEN")
    if token:
        options["SESSION_TOKEN"] = quoted(token)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if region:
        options["REGION"] = quoted(region)
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        hosted = environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() == "true"
        options["ENDPOINT"] = quoted(host.rstrip("/"))
        options["URL_STYLE"] = quoted("vhost" if hosted else "path")
        options["USE_SSL"] = "false" if scheme == "http" else "true"
    listed = ", ".join(f"{name} {value}" for name, value in options.items())
    return f"CREATE OR REPLACE TEMPORARY SECRET rlsparse_store (TYPE s3, PROVIDER config, {listed})"


def quoted(text: str) -> str:
    """A text as SQL writes it: statements such as CREATE SECRET take no bound values.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def _extensions() -> Iterator[str]:
    yield "httpfs"
    package = find_spec("duckdb_extension_httpfs")
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder, "extensions", f"v{duckdb.__version__}", "httpfs.duckdb_extension")
        if path.is_file():
            yield quoted(str(path))


def _loads(con: duckdb.DuckDBPyConnection, extension: str) -> bool:
    try:
        con.execute(f"LOAD {extension}")
    except duckdb.Error:
        return False
    return True
