"""Options for the monitoring of jobs by Prometheus."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.config.base import Section


class MonitoringSection(Section):
    """Monitoring by Prometheus."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "nightshift", description="name of this job in metrics and alerts; use another name for each scheduled job"
    )
    pushgateway: str | None = Field(
        None, description="URL of a Prometheus Pushgateway that stores how this job ended; unset: push nothing"
    )

    @model_validator(mode="after")
    def _check_pushgateway(self) -> MonitoringSection:
        url = urlsplit(self.pushgateway or "http://none")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("watch.pushgateway must be a URL such as http://pushgateway:9091")
        if url.username is not None or url.password is not None or url.query:
            raise ValueError(
                "watch.pushgateway must have no user, password or query, since the configuration is stored with the output"
            )
        return self
