"""The model bundle: a folder that holds a trained model.

``model.safetensors`` (weights), ``tokenizer.model`` (SentencePiece), ``config.json`` (network shape, decoding defaults, hash of
the tokenizer) and ``README.md`` (the model card). The fingerprint covers the first three. Bundles may come from strangers:
nothing is unpickled, and the files must agree with each other before memory is allocated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pipeline.config.base import Section, describe_validation_error
from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.model.seq2seq import Seq2Seq

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.model", "config.json"
FILES = (WEIGHTS, TOKENIZER, CONFIG)
_FORMAT = 1


class _Config(Section):
    """The contents of config.json."""

    format: int
    model: ModelConfig
    vocabulary_size: int
    tokenizer_sha256: str
    decoding: DecodingConfig


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: in evaluation mode.
        tokenizer_file: contents of ``tokenizer.model``.
        fingerprint: SHA-256 over ``FILES``, in hex.
    """

    model: Seq2Seq
    tokenizer_file: bytes
    decoding: DecodingConfig
    fingerprint: str


def save_bundle(
    folder: str | Path,
    model: Seq2Seq,
    tokenizer_file: bytes,
    decoding: DecodingConfig,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write a bundle to a local folder and return its fingerprint. The model card is up to the caller.

    Args:
        folder: created if it is missing.
        dtype: number type of the weights in the file; float16 halves its size. They load as float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tied = _tied_names(model)
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items() if name not in tied
    }
    config = _Config(
        format=_FORMAT,
        model=model.config,
        vocabulary_size=model.vocabulary_size,
        tokenizer_sha256=hashlib.sha256(tokenizer_file).hexdigest(),
        decoding=decoding,
    )
    files = {
        WEIGHTS: save_tensors(weights),
        TOKENIZER: tokenizer_file,
        CONFIG: (config.model_dump_json(indent=2, by_alias=True) + "\n").encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return fingerprint(files)


def load_bundle(folder: str | Path, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle from a local folder, with the model on ``device``.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no model bundle at {folder}; set --model.path to a folder that jobs.train wrote")
    files = {}
    for name in FILES:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {folder / name} of the model bundle: {error.strerror}") from None
    return bundle_from_files(files, str(folder), device)


def bundle_from_files(files: Mapping[str, bytes], origin: str, device: torch.device | str = "cpu") -> Bundle:
    """Build a bundle from the contents of its files.

    Args:
        files: contents by name, for each of ``FILES``.
        origin: name of the bundle in error messages.

    Raises:
        UserError: a file is broken, or the files do not belong together.
    """
    config = _read_config(files[CONFIG], f"{origin}/{CONFIG}")
    if hashlib.sha256(files[TOKENIZER]).hexdigest() != config.tokenizer_sha256:
        raise UserError(f"{origin}/{TOKENIZER} is not the tokenizer that the model was trained with; restore the right one")
    tokenizer = Tokenizer(files[TOKENIZER], f"{origin}/{TOKENIZER}")
    subwords = tokenizer.vocabulary_size
    if subwords != config.vocabulary_size:
        raise UserError(f"{origin}/{CONFIG} says {config.vocabulary_size} subwords, but {TOKENIZER} has {subwords}")
    if config.model.styles and not tokenizer.has_styles:
        raise UserError(f"{origin}/{CONFIG} names styles, but {TOKENIZER} has no style tokens; copy the bundle again")
    style = config.decoding.style
    if style is not None and style not in config.model.styles:
        raise UserError(f"{origin}/{CONFIG} decodes in style {style!r}, which is not one of the model's; copy the bundle again")
    try:
        weights = load_tensors(files[WEIGHTS])
    except (SafetensorError, KeyError) as error:  # KeyError: a number type that torch does not have
        raise UserError(f"{origin}/{WEIGHTS} is broken ({error}); copy the bundle again") from None
    with torch.device("meta"):  # allocates nothing, however large the configured network
        skeleton = Seq2Seq(config.model, config.vocabulary_size)
    tied = _tied_names(skeleton)
    expected = {name: tensor.shape for name, tensor in skeleton.state_dict().items() if name not in tied}
    actual = {name: tensor.shape for name, tensor in weights.items()}
    if mismatches := sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)):
        name = mismatches[0]
        raise UserError(
            f"{origin}/{WEIGHTS} does not fit {CONFIG} in {len(mismatches)} tensors: {name} is "
            f"{_shape(actual.get(name))}, not {_shape(expected.get(name))}; copy the bundle again"
        )
    # Assigned rather than copied into an initialized model, because initial values take seconds to compute.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    skeleton.load_state_dict(weights, strict=False, assign=True)
    if config.model.tied_embeddings:
        skeleton.decoder.output.weight = skeleton.decoder.embedding.weight
    return Bundle(skeleton.to(device).eval(), files[TOKENIZER], config.decoding, fingerprint(files))


def fingerprint(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256, in hex, over weights, tokenizer and configuration."""
    sha256 = hashlib.sha256()
    for name in FILES:
        sha256.update(files[name])
    return sha256.hexdigest()


def _read_config(content: bytes, name: str) -> _Config:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}); copy the bundle again") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        version = values.get("format") if isinstance(values, dict) else None
        raise UserError(f"{name} has bundle format {version}; this version reads format {_FORMAT}")
    try:
        return _Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{name} is not a valid model configuration: {describe_validation_error(error)}") from None


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _tied_names(model: Seq2Seq) -> set[str]:
    """Return the second names of shared parameters; the file stores each parameter under its first name."""
    first_names: dict[int, str] = {}
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if first_names.setdefault(id(parameter), name) != name}
