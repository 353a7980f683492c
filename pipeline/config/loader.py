"""From a YAML file and a command line to a job's configuration.

Values come from the defaults, then a YAML file (``--config FILE``, a path or a URI), then dotted options on the command line
(``--input.path s3://bucket/docs``); the later wins. Which options there are is config/'s business.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NoReturn, TypeGuard, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from pipeline.config.base import JobConfig, describe_validation_error, nearest_option
from pipeline.errors import UserError
from pipeline.io.location import open_location

C = TypeVar("C", bound=JobConfig)


def load_config(cls: type[C], job: str, argv: Sequence[str]) -> C:
    """Build ``cls`` from defaults, the file after ``--config`` and the dotted options in ``argv``.

    ``--help`` prints every option and exits 0.

    Raises:
        UserError: names the option at fault, and the nearest right one for an option that does not exist.
    """
    parser = _Parser(
        f"python -m jobs.{job}",
        f"python -m jobs.{job} [--config FILE] [--section.option VALUE …]",
        cls.__doc__,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file of options, or its URI, as configs/{job}.yaml; options given here win over it, and null unsets one",
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        cls,
        root_parser=parser,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        cli_use_class_docs_for_groups=True,
    )
    known = list(_options(cls))
    given, unknown = parser.parse_known_args(argv)
    for option, value in vars(given).items():
        if value == ["null"]:  # of a list, whose values argparse gathers
            setattr(given, option, "null")
    # A whole section as JSON is pydantic-settings' second way to say the same.
    sections = [name for name, field in cls.model_fields.items() if _is_section(field.annotation)]
    unknown += [f"--{section}" for section in sections if getattr(given, section, None) is not None]
    for word in unknown[:1]:
        name = word.removeprefix("--").split("=", 1)[0]
        fault = (
            f"no option --{name}{nearest_option(name, known)}" if word.startswith("--") else f"{word!r} is no option's value"
        )
        raise UserError(f"{fault}; --help lists the options")
    values: dict[str, Any] = {section: {} for section in sections} | (_read_yaml(given.config) if given.config else {})
    flags = [option for option in known if "." not in option]
    for section in values.keys() - {*sections, *flags}:
        near = difflib.get_close_matches(str(section), [*sections, *flags], n=1) or sections
        raise UserError(f"--config {given.config}: no section {section!r} (did you mean {' or '.join(near)}?)")
    try:
        return cls(_cli_settings_source=source(parsed_args=given), **values)
    except SettingsError as error:
        raise UserError(f"{' '.join(str(error).split())}; --help lists the options") from None
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "--", known)) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


class _Formatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help and re.sub(r"\(default: (None|null)\)", "(default: unset)", action.help)


class _Loader(yaml.SafeLoader):
    """YAML, but a key that comes twice is an error and does not replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"found {key.value!r} twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    """The file's sections; those without a value, all of whose options are commented out, are left away."""
    content = open_location(path, "--config").read()
    try:
        values = yaml.load(content.decode(), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not YAML that can be used: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold sections such as 'input:', not a {type(values).__name__}")
    return {section: value for section, value in values.items() if value is not None}


def _options(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted name of every option of a configuration."""
    for attribute, field in cls.model_fields.items():
        name = prefix + (field.alias or attribute)
        if _is_section(field.annotation):
            yield from _options(field.annotation, name + ".")
        else:
            yield name


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
