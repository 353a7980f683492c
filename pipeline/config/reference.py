"""The reference of all options, written from the typed models: ``python -m pipeline.config.reference > docs/options.md``."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic.fields import FieldInfo

from pipeline.config.base import JobConfig, options_of
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.prepare import PrepareConfig
from pipeline.config.runs import CompactConfig, StatusConfig, VerifyConfig
from pipeline.config.summarize import SummarizeConfig
from pipeline.config.tables import DeliverConfig, FetchConfig
from pipeline.config.train import TrainConfig
from pipeline.config.types import SAMPLE

JOBS: dict[str, type[JobConfig]] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "fetch": FetchConfig,
    "summarize": SummarizeConfig,
    "deliver": DeliverConfig,
    "verify": VerifyConfig,
    "status": StatusConfig,
    "compact": CompactConfig,
}
"""The jobs, in the order in which a user meets them."""

_INTRODUCTION = """\
# Options

<!-- Written by `python -m pipeline.config.reference > docs/options.md`; edit pipeline/config/ instead. -->

Each job takes its options from the defaults below, then from a YAML file (`--config FILE`, a path or a URI), then from the
command line; later sources override earlier ones. An option `input.path` is written `--input.path VALUE` on the command line
and

```yaml
input:
  path: VALUE
```

in a file. `null` unsets an option. An unknown option is an error that names the nearest one. `--help` prints the same as this
page.
"""


def reference() -> str:
    return "\n".join([_INTRODUCTION, *(line for job, config in JOBS.items() for line in _job(job, config))])


def _job(job: str, config: type[JobConfig]) -> Iterator[str]:
    yield f"## jobs.{job}\n"
    yield f"{' '.join((config.__doc__ or '').split())}\n"
    yield "| option | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, field in options_of(config):
        cells = (f"`{name}`", _type(field.annotation), _default(field), field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _type(annotation: Any) -> str:
    """Return an annotation in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    name: str = annotation.__name__
    return {"str": "text", "int": "integer", "float": "number", "bool": "`true`, `false`"}.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str) and value.startswith(str(SAMPLE)):
        return "the shipped sample"
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    print(reference(), end="")
