"""Settings of the record that runs leave with MLflow."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from xrec.config.base import Frozen


class Tracking(Frozen):
    """Tracking of runs with MLflow: settings, figures, versions."""

    enabled: bool = True
    """Whether runs are logged."""
    uri: str | None = None
    """MLflow's store, such as https://mlflow.example.com, databricks or sqlite:////data/mlflow.db; default: mlflow.db below \
storage.artifacts, where that is a local folder. Credentials come from MLflow's environment variables."""
    experiment: Annotated[str, Field(min_length=1)] = "xrec"
    """MLflow's experiment that the runs belong to; on Databricks a path such as /Shared/xrec."""

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        # Settings are written to tables and logs.
        if uri and urlsplit(uri).password:
            raise ValueError(
                "tracking.uri: found a password in it, expected none: settings are no place for secrets; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in the environment"
            )
        return uri
