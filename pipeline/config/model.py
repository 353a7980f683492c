"""Options of the network and of decoding, which several jobs share and a model bundle stores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from pipeline.config.base import Section, describe_validation_error
from pipeline.config.types import SAMPLE, BeamSize, Depth, Positive, StyleName, StyleNames, TokenCount, Width
from pipeline.errors import UserError


class ModelConfig(Section):
    """Shape of the network."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="recurrent cell of the encoder and the decoder")
    embedding_size: Width = Field(256, description="size of a token embedding")
    hidden_size: Width = Field(256, description="units per layer of the decoder, and per direction of the encoder")
    encoder_hidden_size: Width | None = Field(
        None, description="units per direction of a bidirectional encoder; unset: hidden_size"
    )
    layers: Depth = Field(1, description="stacked recurrent layers, in the encoder and in the decoder")
    bidirectional: bool = Field(
        True, description="the encoder reads in both directions, and a learned bridge combines its final states"
    )
    attention: Literal["none", "dot", "general", "additive"] = Field(
        "general",
        description="none: plain encoder-decoder; dot, general: Luong et al. 2015; additive: Bahdanau et al. 2015",
    )
    copy_source: bool = Field(
        True, alias="copy", description="let the decoder copy source subwords (See et al. 2017); needs attention"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="dropout on embeddings, between layers and before the output layer"
    )
    variational_dropout: bool = Field(False, description="drop the same units at each step of a text (Gal & Ghahramani 2016)")
    recurrent_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="dropout on the recurrent weights, drawn once per batch (Merity et al. 2018)"
    )
    tied_embeddings: bool = Field(True, description="source, target and output layers share one embedding table")
    styles: StyleNames = Field([], description="names of the styles of summary, at most 8; unset: those of the training pairs")

    @model_serializer(mode="wrap")
    def _omit_later_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that bundles of earlier versions do not have, unless they are set."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name not in ("encoder_hidden_size", "styles") or value}

    @property
    def encoder_units(self) -> int:
        """Units per direction of the encoder."""
        return self.encoder_hidden_size or self.hidden_size

    @model_validator(mode="after")
    def _check_shape(self) -> ModelConfig:
        if self.encoder_units != self.hidden_size and not self.bidirectional:
            raise ValueError("encoder_hidden_size needs bidirectional: true, whose bridge joins the two sizes; unset it")
        if self.copy_source and self.attention == "none":
            raise ValueError("copy: true needs attention; set attention to dot, general or additive, or copy to false")
        return self


class DecodingConfig(Section):
    """Decoding options, which the model bundle stores as its defaults."""

    max_source_tokens: TokenCount = Field(128, description="truncate sources to this many subwords, and mark them as truncated")
    max_target_tokens: TokenCount = Field(48, description="truncate summaries to this many subwords")
    min_target_tokens: Annotated[int, Field(ge=0)] = Field(1, description="write at least this many subwords before </s>")
    max_target_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None,
        description="also truncate a summary to this ratio times its source length, plus max_target_extra; unset: no limit",
    )
    max_target_extra: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        10, description="subwords added to the limit of max_target_ratio; no effect if that is unset"
    )
    no_repeat_ngram: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        3, description="never repeat n subwords in a row within a summary; 0: allow repeats"
    )
    beam_size: BeamSize = Field(1, description="hypotheses kept at each step; 1: greedy search")
    length_penalty: Annotated[float, Field(ge=0, le=100)] = Field(
        0.6, description="beam search: how much to favor longer hypotheses (alpha in Wu et al. 2016, eq. 14)"
    )
    coverage_penalty: Annotated[float, Field(ge=0)] = Field(
        0.0, description="beam search: how much to favor attention to all of the source (beta in eq. 14); needs attention"
    )
    style: StyleName | None = Field(None, description="style of summary, one of the model's; unset: no style token")

    @model_serializer(mode="wrap")
    def _omit_no_style(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a style that is unset, so that documents summarized by earlier versions count as unchanged."""
        values: dict[str, Any] = handler(self)
        return values if self.style else {name: value for name, value in values.items() if name != "style"}

    @property
    def max_text_tokens(self) -> int:
        """Subwords that the model reads of a text: the style token takes one place."""
        return self.max_source_tokens - (self.style is not None)

    @model_validator(mode="after")
    def _check_lengths(self) -> DecodingConfig:
        if self.min_target_tokens > self.max_target_tokens:
            raise ValueError(f"min_target_tokens {self.min_target_tokens} is over max_target_tokens {self.max_target_tokens}")
        if self.max_text_tokens < 1:
            raise ValueError("max_source_tokens 1 leaves no room for text beside the style token; raise it")
        return self


def _override(option: str) -> Any:
    return Field(None, description=DecodingConfig.model_fields[option].description)


class DecodingOverrides(Section):
    """Decoding options; an unset option keeps the model bundle's default."""

    max_source_tokens: Positive | None = _override("max_source_tokens")
    max_target_tokens: Positive | None = _override("max_target_tokens")
    min_target_tokens: Annotated[int, Field(ge=0)] | None = _override("min_target_tokens")
    max_target_ratio: Annotated[float, Field(gt=0)] | None = _override("max_target_ratio")
    max_target_extra: Annotated[int, Field(ge=0)] | None = _override("max_target_extra")
    no_repeat_ngram: Annotated[int, Field(ge=0)] | None = _override("no_repeat_ngram")
    beam_size: Positive | None = _override("beam_size")
    length_penalty: Annotated[float, Field(ge=0)] | None = _override("length_penalty")
    coverage_penalty: Annotated[float, Field(ge=0)] | None = _override("coverage_penalty")
    style: StyleName | None = Field(None, description="style of summary, one of the model's")

    def applied_to(self, defaults: DecodingConfig, model: ModelConfig, option: str = "--model.path") -> DecodingConfig:
        """Return the bundle's options with these overrides.

        Args:
            option: Option that names the bundle, for messages.

        Raises:
            UserError: The options conflict with each other or with the model.
        """
        try:
            options = DecodingConfig.model_validate(defaults.model_dump() | self.model_dump(exclude_none=True))
        except ValidationError as error:
            raise UserError(
                f"the --decoding options do not fit the defaults of {option}: {describe_validation_error(error)}"
            ) from None
        if self.coverage_penalty and model.attention == "none":
            raise UserError(
                f"--decoding.coverage_penalty needs attention, which the model of {option} does not have; leave it unset"
            )
        if options.style is not None and options.style not in model.styles:
            has = f"it has: {', '.join(model.styles)}" if model.styles else "it has none"
            raise UserError(f"style {options.style!r} is not one of {option}'s model ({has}); set --decoding.style")
        return options


class ModelPath(Section):
    """The model."""

    path: str = Field(str(SAMPLE / "model"), description="folder of the model bundle; sample: the shipped one")
