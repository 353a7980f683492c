"""What a configuration is made of: sections of options, each validated, and what is said of one that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class Section(BaseModel):
    """A group of options. An option that does not exist is an error, so a misspelt one cannot be silently ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class JobConfig(BaseSettings):
    """Base of the jobs' configurations."""

    model_config = SettingsConfigDict(extra="forbid", protected_namespaces=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values given alone: an environment variable that happens to be called MODEL must not set one."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def describe_validation_error(error: ValidationError, prefix: str = "", known: Sequence[str] = ()) -> str:
    """Pydantic's faults in one line.

    prefix: comes before an option's name. known: options to find the nearest right one among, where one does not exist.
    """
    lines = []
    for fault in error.errors():
        option = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
        name, message = prefix + option, fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            lines.append(f"no option {name}{nearest_option(option, known)}")
        elif fault["type"] == "missing":
            lines.append(f"{name} must be set")
        elif isinstance(fault["input"], dict | BaseModel):
            lines.append(f"{name}: {message}" if option else message)
        else:
            lines.append(f"{name}: {message[0].lower()}{message[1:]}, not {fault['input']!r}")
    return "; ".join(lines)


def nearest_option(name: str, known: Sequence[str]) -> str:
    """Of the known options, in words; nothing if none is near."""
    same_ending = [option for option in known if option.rpartition(".")[2] == name.rpartition(".")[2]]
    near = difflib.get_close_matches(name, same_ending or known, n=1, cutoff=0.5) or same_ending[:1]
    return f" (did you mean --{near[0]}?)" if near else ""
