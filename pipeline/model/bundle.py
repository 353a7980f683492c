"""The model bundle: a folder with everything that a trained model is.

``model.safetensors`` (weights), ``tokenizer.model`` (SentencePiece), ``config.json`` (the network's shape and decoding
defaults) and, for people, ``README.md``. The first three make the fingerprint. Nothing is ever unpickled. A hash of
the tokenizer's file is in config.json, so that a model and a tokenizer that were not trained together are found out. A bundle
may be a stranger's: what it says of itself is held to what it holds before memory is taken for it.
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
    """What config.json holds."""

    format: int
    model: ModelConfig
    vocabulary_size: int
    tokenizer_sha256: str
    decoding: DecodingConfig


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. fingerprint: sha256, in hex, over the three files."""

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
    readme: str = "",
) -> str:
    """Write a bundle to a local folder, which is made, and return its fingerprint.

    Args:
        dtype: of the weights in the file; float16 halves it. They compute in float32 again once loaded.
        readme: the model card.
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
    if readme:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return fingerprint(files)


def load_bundle(folder: str | Path, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle from a local folder; the model is in evaluation mode on ``device``.

    Raises:
        UserError: a file is missing or broken, or they do not belong together.
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
    """Build a bundle from its three files' contents, wherever they were read.

    Args:
        files: content by name, for each of ``FILES``. origin: what to call the bundle in an error.

    Raises:
        UserError: a file is broken, or they do not belong together.
    """
    config = _read_config(files[CONFIG], f"{origin}/{CONFIG}")
    if hashlib.sha256(files[TOKENIZER]).hexdigest() != config.tokenizer_sha256:
        raise UserError(f"{origin}/{TOKENIZER} is not the one that the model was trained with; put the right one back")
    subwords = Tokenizer(files[TOKENIZER], f"{origin}/{TOKENIZER}").vocabulary_size
    if subwords != config.vocabulary_size:
        raise UserError(f"{origin}/{CONFIG} says {config.vocabulary_size} subwords, but {TOKENIZER} has {subwords}")
    try:
        weights = load_tensors(files[WEIGHTS])
    except (SafetensorError, KeyError) as error:  # the latter for a type of numbers that torch has not
        raise UserError(f"{origin}/{WEIGHTS} is broken ({error}); copy the bundle again") from None
    with torch.device("meta"):  # takes no memory, however large a network the configuration speaks of
        outline = Seq2Seq(config.model, config.vocabulary_size)
    tied = _tied_names(outline)
    expected = {name: tensor.shape for name, tensor in outline.state_dict().items() if name not in tied}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise UserError(
            f"{origin}/{WEIGHTS} does not fit {CONFIG}, in {len(wrong)} of its tensors: {name} is "
            f"{_shape(found.get(name))}, not {_shape(expected.get(name))}"
        )
    model = Seq2Seq(config.model, config.vocabulary_size)
    model.load_state_dict(weights, strict=False)
    return Bundle(model.to(device).eval(), files[TOKENIZER], config.decoding, fingerprint(files))


def fingerprint(files: Mapping[str, bytes]) -> str:
    """sha256, in hex, over weights, tokenizer and configuration."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(files[name])
    return digest.hexdigest()


def _read_config(content: bytes, name: str) -> _Config:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}); copy the bundle again") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise UserError(f"{name} has bundle format {found}; this version reads format {_FORMAT}")
    try:
        return _Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{name} is not a model's configuration: {describe_validation_error(error)}") from None


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _tied_names(model: Seq2Seq) -> set[str]:
    """Names of parameters that are another's under a second name; the first alone is stored."""
    first_of: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if first_of.setdefault(id(parameter), name) != name}
