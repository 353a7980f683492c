"""Base classes of all configurations, their options, and messages for invalid ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class Section(BaseModel):
    """A group of options. An unknown option is an error, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class JobConfig(BaseSettings):
    """The configuration of a job: sections of options."""

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
        """Ignore environment variables: one that happens to be called MODEL must not set an option."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Return whether a field of this type is a section of options."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def options_of(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name of each option, and its field."""
    for attribute, field in config.model_fields.items():
        name = prefix + (field.alias or attribute)
        if is_section(field.annotation):
            yield from options_of(field.annotation, f"{name}.")
        else:
            yield name, field


def describe_validation_error(error: ValidationError, prefix: str = "", known: Sequence[str] = ()) -> str:
    """Return all problems of a validation error on one line.

    Args:
        prefix: text before each option's name, such as "--".
        known: valid options, of which the nearest is suggested for an unknown one.
    """
    problems = []
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
        name, message = prefix + option, problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            problems.append(f"no option {name}{suggest_option(option, known)}")
        elif problem["type"] == "missing":
            problems.append(f"{name} must be set")
        elif isinstance(problem["input"], dict | BaseModel):
            problems.append(f"{name}: {message}" if option else message)
        else:
            problems.append(f"{name}: {message[0].lower()}{message[1:]}, not {problem['input']!r}")
    return "; ".join(problems)


def suggest_option(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean --section.option?)" for the known option nearest to ``name``, or "" if none is near."""
    same_option = [option for option in known if option.rpartition(".")[2] == name.rpartition(".")[2]]
    matches = difflib.get_close_matches(name, same_option or known, n=1, cutoff=0.5) or same_option[:1]
    return f" (did you mean --{matches[0]}?)" if matches else ""
