"""Plan a training: the options that follow from its pairs and from the model that it starts from, its parent.

A parent gives weights, tokenizer, network shape and decoding options. Everything about learning is new: no state of the
optimizer, no step count and no position in the data is taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.bundles import read_bundle
from pipeline.config.base import describe_validation_error
from pipeline.config.model import ModelConfig
from pipeline.config.train import FINE_TUNING, TrainConfig
from pipeline.data.pairs import open_pairs
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.model.bundle import TOKENIZER, Bundle

_FREE_MODEL_OPTIONS = frozenset({"init_from", "dropout", "variational_dropout", "recurrent_dropout", "styles"})
"""Options of ``model`` that do not change the shape of the weights, and so may differ from the parent's."""


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


@dataclass(frozen=True)
class TrainingPlan:
    """What to train.

    Attributes:
        config: The configuration, with all options resolved.
        parent: The bundle to start from; None to start from random weights.
        tokenizer_file: Contents of the tokenizer's file.
    """

    config: TrainConfig
    parent: Parent | None
    tokenizer_file: bytes


def plan_training(config: TrainConfig) -> TrainingPlan:
    """Resolve the options of a training, and read its tokenizer and its parent.

    Raises:
        UserError: A bundle, the tokenizer or the pairs cannot be read, or an option contradicts them.
    """
    config, parent = _inherit(config)
    config = _add_styles(config)
    return TrainingPlan(config, parent, _read_tokenizer(config, parent))


def _inherit(config: TrainConfig) -> tuple[TrainConfig, Parent | None]:
    """Return the configuration with the parent's options where none are given, and the parent."""
    path = config.model.init_from
    if path is None:
        return config, None
    files, bundle = read_bundle(path, option="--model.init_from")
    given = config.model_dump(by_alias=True, exclude_unset=True)
    _check_model_options(bundle.model.config, given["model"], path)
    inherited = _inherited_options(bundle, config, given)
    free = {name: value for name, value in given["model"].items() if name in _FREE_MODEL_OPTIONS}
    given["model"] = {key: value for key, value in free.items() if key != "styles" or value}
    values = {name: inherited.get(name, {}) | given.get(name, {}) for name in inherited.keys() | given.keys()}
    return _validate(values, f"the options do not fit --model.init_from {path}"), Parent(path, files, bundle.fingerprint)


def _inherited_options(bundle: Bundle, config: TrainConfig, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options, by section, that a parent sets unless they are given."""
    decoding, network = bundle.decoding, bundle.model.config
    # More target tokens than the parent was trained on are no risk; fewer would cut the new pairs.
    most_target_tokens = max(decoding.max_target_tokens, config.data.max_target_tokens)
    lengths = {"max_source_tokens": decoding.max_source_tokens, "max_target_tokens": most_target_tokens}
    lengths |= {name: given["data"][name] for name in lengths if name in given.get("data", {})}
    learning = {name: value for name, value in FINE_TUNING.items() if name != "coverage" or network.attention != "none"}
    return {
        "data": {"tokenizer": None, **lengths},
        "model": network.model_dump(by_alias=True, exclude={"dropout", "variational_dropout", "recurrent_dropout"}),
        "training": learning,
        "decoding": decoding.model_dump(by_alias=True, exclude={"style"}) | lengths,
    }


def _check_model_options(network: ModelConfig, given: dict[str, Any], path: str) -> None:
    """Raise UserError if a given option of ``model`` contradicts the parent's network."""
    shape = network.model_dump(by_alias=True) | {"encoder_hidden_size": network.encoder_units}
    for name in given.keys() - _FREE_MODEL_OPTIONS:
        if given[name] is not None and given[name] != shape[name]:
            raise UserError(
                f"--model.{name} is {given[name]}, but the network of --model.init_from {path} has {name} {shape[name]}; "
                f"leave --model.{name} unset, or start from random weights"
            )
    styles = given.get("styles") or network.styles
    if styles[: len(network.styles)] != network.styles:
        raise UserError(f"--model.styles must start with {','.join(network.styles)}, the styles of --model.init_from {path}")


def _add_styles(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the styles of the training pairs, and the most frequent one as the default."""
    counts = open_pairs(config.data.train, "--data.train").count_styles()
    styles = [*config.model.styles, *sorted(style for style in counts if style and style not in config.model.styles)]
    style = config.decoding.style
    if styles and "style" not in config.decoding.model_fields_set:
        style = counts.most_common(1)[0][0] if counts else None
    if style is not None and style not in styles:
        known = f"one of {', '.join(styles)}" if styles else "unset: --data.train has no column style"
        raise UserError(f"--decoding.style {style} is a style of neither the model nor --data.train; it must be {known}")
    if not styles:
        return config
    values = config.model_dump(by_alias=True)
    values["model"]["styles"], values["decoding"]["style"] = styles, style
    return _validate(values, f"the styles of --data.train {config.data.train} cannot be used")


def _validate(values: dict[str, Any], problem: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{problem}: {describe_validation_error(error)}") from None


def _read_tokenizer(config: TrainConfig, parent: Parent | None) -> bytes:
    """Return the file of ``data.tokenizer``, or the parent's tokenizer if that is unset.

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
