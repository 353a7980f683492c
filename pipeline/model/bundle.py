"""The model bundle: a folder with everything that a trained model is.

``model.safetensors`` (weights), ``tokenizer.model`` (SentencePiece), ``config.json`` (the network's shape and decoding
defaults) and, for people, ``README.md``. The first three make the fingerprint. Nothing is ever unpickled. This module
does not read the tokenizer: it keeps the file's bytes, and a hash of them in config.json, so that a model and a
tokenizer that were not trained together are found out.
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

from pipeline.config import DecodingConfig, ModelConfig
from pipeline.errors import UserError
from pipeline.model.seq2seq import Seq2Seq

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.model", "config.json"
FILES = (WEIGHTS, TOKENIZER, CONFIG)
_FORMAT = 1


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
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    config = {
        "format": _FORMAT,
        "model": model.config.model_dump(by_alias=True),
        "vocabulary_size": model.vocabulary_size,
        "tokenizer_sha256": hashlib.sha256(tokenizer_file).hexdigest(),
        "decoding": decoding.model_dump(),
    }
    files = {
        WEIGHTS: save_tensors(weights),
        TOKENIZER: tokenizer_file,
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
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
    try:
        config = json.loads(files[CONFIG])
        shape = ModelConfig.model_validate(config["model"])
        decoding = DecodingConfig.model_validate(config["decoding"])
        vocabulary_size, tokenizer_sha256 = int(config["vocabulary_size"]), config["tokenizer_sha256"]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{origin}/{CONFIG} is not a model's configuration: {' '.join(str(error).split())}") from None
    if config.get("format") != _FORMAT:
        raise UserError(f"{origin} has bundle format {config.get('format')}; this version reads format {_FORMAT}")
    if hashlib.sha256(files[TOKENIZER]).hexdigest() != tokenizer_sha256:
        raise UserError(f"{origin}: {TOKENIZER} is not the one that {WEIGHTS} was trained with; put the right one back")
    try:
        weights = load_tensors(files[WEIGHTS])
    except SafetensorError as error:
        raise UserError(f"{origin}/{WEIGHTS} is broken ({error}); copy the bundle again") from None
    model = Seq2Seq(shape, vocabulary_size)
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{origin}/{WEIGHTS} does not fit {CONFIG}: {' '.join(str(error).split())}") from None
    if unexpected or set(missing) - _tied_names(model):
        raise UserError(f"{origin}/{WEIGHTS} does not fit {CONFIG}: missing {missing}, not known {unexpected}")
    return Bundle(model.to(device).eval(), files[TOKENIZER], decoding, fingerprint(files))


def fingerprint(files: Mapping[str, bytes]) -> str:
    """sha256, in hex, over weights, tokenizer and configuration."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(files[name])
    return digest.hexdigest()


def _tied_names(model: Seq2Seq) -> set[str]:
    """Names of parameters that are another's under a second name; the first alone is stored."""
    first_of: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if first_of.setdefault(id(parameter), name) != name}
