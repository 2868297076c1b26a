"""DuckDB with the extensions of a lake, from the packages of the extra `lake`: nothing is fetched from a network."""

import functools
import importlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import duckdb

from storage.errors import ServerUnusable, StorageError
from storage.lake_errors import quoted

EXTENSIONS = ("ducklake", "postgres_scanner", "httpfs")


@functools.cache
def instance(pid: int) -> duckdb.DuckDBPyConnection:
    """The DuckDB of a process, in memory: to load the extensions takes longer than to open a lake.

    Args:
        pid: Of the process; a fork gets its own.

    Raises:
        StorageError: They are not installed, or of another DuckDB.
    """
    con = duckdb.connect()
    for name in EXTENSIONS:
        try:
            package = importlib.import_module(f"duckdb_extension_{name}")
        except ImportError as error:
            raise StorageError("servers.ledger needs what the extra `lake` brings: install tamis[lake]") from error
        (file,) = Path(str(package.__file__)).parent.rglob("*.duckdb_extension")
        try:
            con.execute(f"LOAD '{quoted(str(file))}'")
        except duckdb.Error as error:
            raise StorageError(
                f"DuckDB {duckdb.__version__} does not take the extension {name}; install tamis[lake], which brings "
                "the DuckDB they are of"
            ) from error
    return con


def open_data(con: duckdb.DuckDBPyConnection, data: str) -> None:
    """Make the bucket of a lake readable, with the keys and the endpoint of the environment.

    Raises:
        ServerUnusable: There are no keys.
    """
    if not data.startswith("s3://"):
        return
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        raise ServerUnusable(f"{data} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment; set them")
    given = {"KEY_ID": key, "SECRET": secret, "REGION": os.environ.get("AWS_REGION", "us-east-1")}
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        given["SESSION_TOKEN"] = token
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
        address = urlsplit(endpoint)
        given |= {"ENDPOINT": address.netloc, "URL_STYLE": "path", "USE_SSL": str(address.scheme == "https").lower()}
    options = ", ".join(f"{name} '{quoted(value)}'" for name, value in given.items())
    con.execute(f"CREATE OR REPLACE TEMPORARY SECRET lake (TYPE s3, {options})")
