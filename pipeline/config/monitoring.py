"""What the jobs of a night tell those who watch them."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.config.base import Section


class MonitoringSection(Section):
    """What Prometheus is told."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "nightshift", description="name of this job in metrics, by which alerts tell it from others"
    )
    pushgateway: str | None = Field(
        None, description="URL of a Prometheus Pushgateway, which keeps how this job ended and when it last succeeded"
    )

    @model_validator(mode="after")
    def _is_an_address(self) -> MonitoringSection:
        url = urlsplit(self.pushgateway or "http://none")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("watch.pushgateway must be a URL such as http://pushgateway:9091")
        if url.username is not None or url.password is not None or url.query:
            raise ValueError(
                "watch.pushgateway must have no user, password or query: the configuration is kept with the output"
            )
        return self
