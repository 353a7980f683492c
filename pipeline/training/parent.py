"""Start a training from another model, its parent: weights, tokenizer, network shape and the length of sources.

Everything about learning is new: no state of the optimizer, no step count and no position in the data is taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.bundles import read_bundle
from pipeline.config.base import describe_validation_error
from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.data.pairs import open_pairs
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.model.bundle import TOKENIZER

_NOT_SHAPE = frozenset({"dropout", "variational_dropout", "recurrent_dropout", "styles"})
"""Options of the network that do not change the shape of its weights, and so may differ from the parent's."""

_FINE_TUNING: dict[str, Any] = {"learning_rate": 5e-4, "epochs": 8.0, "warmup_steps": 40, "validate_minutes": 1.0}
"""Defaults of ``training`` that replace those for random weights (docs/training.md)."""

_COVERAGE = 0.5


@dataclass(frozen=True)
class Parent:
    """The bundle that a training starts from.

    Attributes:
        path: Location, as configured.
        files: Contents of its files, by name.
        fingerprint: SHA-256 over the files, in hex.
    """

    path: str
    files: Mapping[str, bytes]
    fingerprint: str


def resolve_parent(config: TrainConfig) -> tuple[TrainConfig, Parent | None]:
    """Return the configuration with the options that follow from ``model.init_from`` and the training pairs, and the parent.

    Raises:
        UserError: The bundle or the pairs cannot be read, or an option contradicts them.
    """
    config, parent = _inherit(config)
    counts = open_pairs(config.data.train, "--data.train").count_styles()
    new = sorted(style for style in counts if style is not None and style not in config.model.styles)
    if not new and not config.model.styles:
        return config, parent
    values = config.model_dump(by_alias=True)
    values["model"]["styles"] = [*config.model.styles, *new]
    if "style" not in config.decoding.model_fields_set:
        values["decoding"]["style"] = counts.most_common(1)[0][0] if counts else None
    try:
        return TrainConfig.model_validate(values), parent
    except ValidationError as error:
        problem = describe_validation_error(error)
        raise UserError(f"the styles of --data.train {config.data.train} cannot be used: {problem}") from None


def _inherit(config: TrainConfig) -> tuple[TrainConfig, Parent | None]:
    path = config.model.init_from
    if path is None:
        return config, None
    files, bundle = read_bundle(path, option="--model.init_from")
    given = config.model_dump(by_alias=True, exclude_unset=True)
    shape = _shape(bundle.model.config, given.get("model", {}), path)
    coverage = {} if shape["attention"] == "none" else {"coverage": _COVERAGE}
    lengths = {"max_source_tokens": bundle.decoding.max_source_tokens, "max_target_tokens": config.data.max_target_tokens}
    lengths |= {name: given["data"][name] for name in lengths if name in given.get("data", {})}
    inherited: dict[str, dict[str, Any]] = {
        "data": {"tokenizer": None, **lengths},
        "model": shape,
        "training": _FINE_TUNING | coverage,
        "decoding": lengths,
    }
    styles = bundle.model.config.styles
    if config.model.styles[: len(styles)] != styles:
        if config.model.styles:
            raise UserError(f"--model.styles must start with {','.join(styles)}, the styles of --model.init_from {path}")
        inherited["model"]["styles"] = styles
    sections = {name: inherited.get(name, {}) | given.get(name, {}) for name in inherited.keys() | given.keys()}
    return TrainConfig.model_validate(sections), Parent(path, files, bundle.fingerprint)


def _shape(network: ModelConfig, given: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the parent's shape; raise UserError if a given option is another."""
    shape = network.model_dump(by_alias=True, exclude=set(_NOT_SHAPE))
    for name, value in given.items():
        if value != shape.get(name, value):
            raise UserError(
                f"--model.{name} is {value}, but the network of --model.init_from {path} has {name} {shape[name]}; "
                f"leave --model.{name} unset, or start from random weights"
            )
    return shape


def read_tokenizer(config: TrainConfig, parent: Parent | None) -> bytes:
    """Return the file of a training's tokenizer: that of ``data.tokenizer``, or the parent's if it is unset.

    Raises:
        UserError: The file cannot be read, is not a tokenizer, or is not the parent's.
    """
    uri = config.data.tokenizer
    if uri is not None:
        file = open_location(uri, "--data.tokenizer").read()
    elif parent is not None:
        file = parent.files[TOKENIZER]
    else:
        raise UserError("--data.tokenizer must be set, unless --model.init_from is")
    tokenizer = Tokenizer(file, uri or TOKENIZER)
    if config.model.styles and not tokenizer.has_styles:
        origin = f"--data.tokenizer {uri}" if uri else f"--model.init_from {config.model.init_from}"
        raise UserError(f"the tokenizer of {origin} has no style tokens; prepare the pairs without a style, or train a new one")
    if parent is not None and file != parent.files[TOKENIZER]:
        raise UserError(
            f"--data.tokenizer {uri} is not the tokenizer that the weights of --model.init_from {parent.path} belong to; "
            "leave --data.tokenizer unset"
        )
    return file
