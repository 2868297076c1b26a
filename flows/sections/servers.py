"""Section `servers`: what a team shares instead of the files in a workspace. Credentials come from the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from flows.sections.base import SECRET, Section

UNFIT = re.compile(r"[^a-z0-9_]")
LONGEST = 40


def _without_secret(uri: str, users: bool, where: str) -> None:
    given = urlsplit(uri)
    if given.password or "password" in given.query or (given.username and not users):
        raise PydanticCustomError(SECRET, f"holds credentials, which this file is no place for: set {where}")


def _server(uri: str) -> str:
    _without_secret(uri, False, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if uri and (not uri.startswith(("http://", "https://")) or not urlsplit(uri).hostname):
        raise ValueError("give http://HOST:PORT or https://HOST; leave it out for a store in the workspace")
    return uri


def _catalog(uri: str) -> str:
    _without_secret(uri, True, "PGPASSWORD or PGPASSFILE")
    given = urlsplit(uri)
    if given.scheme != "postgresql" or not given.hostname or not given.path.strip("/") or "'" in uri:
        raise ValueError("give a PostgreSQL database: postgresql://USER@HOST:PORT/DATABASE")
    return uri


class LakeConfig(Section):
    """A ledger on DuckLake: a catalog in PostgreSQL, rows as Parquet files."""

    catalog: Annotated[str, AfterValidator(_catalog)]
    """The database, as `postgresql://USER@HOST:PORT/DATABASE`."""
    data: str
    """A folder beside the TOML that every machine sees, or `s3://BUCKET/PREFIX`."""
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] | None = None
    """Of the catalog's schema, one for each data set; default: `tamis_` and the data set's name."""

    def schema_of(self, dataset: str) -> str:
        """The name of the schema with the ledger of a data set."""
        return self.name or f"tamis_{UNFIT.sub('_', dataset.lower())}"[:LONGEST]

    @field_validator("data")
    @classmethod
    def _placed(cls, data: str, info: ValidationInfo) -> str:
        scheme, given, rest = data.partition("://")
        if given:
            if scheme != "s3" or not rest.strip("/"):
                raise ValueError("give a folder, or s3://BUCKET/PREFIX")
            return data.rstrip("/")
        if not data:
            raise ValueError("give a folder, or s3://BUCKET/PREFIX")
        return data if info.context is None else str(Path(info.context["folder"]) / data)


class ServersConfig(Section):
    """Where runs, models and the ledger are kept; what is not given is kept in the workspace."""

    mlflow: Annotated[str, AfterValidator(_server)] = ""
    """URI of an MLflow server; empty: a store in the workspace."""
    ledger: LakeConfig | None = None
    """A DuckLake; none: a file in the workspace."""
