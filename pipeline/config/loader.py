"""Load a job's configuration from its defaults, a YAML file and the command line.

A YAML file (``--config FILE``, a path or URI) overrides the defaults, and dotted options on the command line
(``--input.path s3://bucket/docs``) override both. This module does not know which options exist.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Hashable, Sequence
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from pipeline.config.base import JobConfig, describe_validation_error, is_section, options_of, suggest_option
from pipeline.errors import UserError
from pipeline.io.location import open_location

C = TypeVar("C", bound=JobConfig)


def load_config(cls: type[C], job: str, argv: Sequence[str]) -> C:
    """Build a configuration from defaults, the file after ``--config`` and the dotted options in ``argv``.

    ``--help`` prints every option and exits with status 0.

    Raises:
        UserError: an option or the file is invalid; names the option, and the nearest valid one for an unknown option.
    """
    parser = _new_parser(cls, job)
    source: CliSettingsSource[Any] = CliSettingsSource(
        cls,
        root_parser=parser,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        cli_use_class_docs_for_groups=True,
    )
    known = [name for name, _ in options_of(cls)]
    sections = [name for name, field in cls.model_fields.items() if is_section(field.annotation)]
    arguments, unknown = parser.parse_known_args(argv)
    # pydantic-settings would also accept a whole section as JSON.
    unknown += [f"--{section}" for section in sections if getattr(arguments, section, None) is not None]
    if unknown:
        raise _unknown_argument(unknown[0], known)
    for option, value in vars(arguments).items():
        if value == ["null"]:  # argparse collects the values of a list option
            setattr(arguments, option, "null")
    values: dict[str, Any] = {section: {} for section in sections}
    if arguments.config:
        values |= _read_yaml(arguments.config)
    top_level = [*sections, *(option for option in known if "." not in option)]
    for name in values.keys() - set(top_level):
        matches = difflib.get_close_matches(str(name), top_level, n=1) or sections
        raise UserError(f"--config {arguments.config}: no section {name!r} (did you mean {' or '.join(matches)}?)")
    try:
        return cls(_cli_settings_source=source(parsed_args=arguments), **values)
    except SettingsError as error:
        raise UserError(f"{' '.join(str(error).split())}; --help lists the options") from None
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "--", known)) from None


def _new_parser(cls: type[JobConfig], job: str) -> _Parser:
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
        help="YAML file of options, a path or URI. Options on the command line override the file; null unsets an option",
    )
    return parser


def _unknown_argument(argument: str, known: Sequence[str]) -> UserError:
    name = argument.removeprefix("--").split("=", 1)[0]
    problem = f"no option --{name}{suggest_option(name, known)}"
    if not argument.startswith("--"):
        problem = f"unexpected argument {argument!r}"
    return UserError(f"{problem}; --help lists the options")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


class _Formatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help and re.sub(r"\(default: (None|null)\)", "(default: unset)", action.help)


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    """Return the sections of a YAML file, except empty ones, whose options are all commented out."""
    content = open_location(path, "--config").read()
    try:
        values = yaml.load(content.decode(), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold sections such as 'input:', not a {type(values).__name__}")
    return {section: value for section, value in values.items() if value is not None}
