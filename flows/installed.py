"""Versions of what is installed; MLflow's client alone, the package mlflow-skinny, counts as MLflow."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """The version of a package.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        if package != "mlflow":
            raise
        return version("mlflow-skinny")
