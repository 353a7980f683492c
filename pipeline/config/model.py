"""The network, and the search with it: what a bundle holds and several jobs set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.config.base import Section, describe_validation_error
from pipeline.config.types import SAMPLE, BeamSize, Depth, Positive, TokenCount, Width
from pipeline.errors import UserError


class ModelConfig(Section):
    """The network's shape."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="recurrent cell of encoder and decoder")
    embedding_size: Width = Field(256, description="size of a token's embedding")
    hidden_size: Width = Field(256, description="units per layer of the decoder, and per direction of the encoder")
    layers: Depth = Field(1, description="stacked recurrent layers, in the encoder and in the decoder")
    bidirectional: bool = Field(True, description="encoder reads in both directions; a learned bridge joins the states")
    attention: Literal["none", "dot", "general", "additive"] = Field(
        "general",
        description="none is the plain network; dot, general: Luong et al. 2015; additive: Bahdanau et al. 2015",
    )
    copy_source: bool = Field(
        True, alias="copy", description="let the decoder copy source subwords (See et al. 2017); needs attention"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="dropout on embeddings, between layers and before the output"
    )
    variational_dropout: bool = Field(
        False, description="dropout drops the same units at each step of a text (Gal & Ghahramani 2016)"
    )
    recurrent_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="dropout on the weights from step to step, a draw a batch (Merity et al. 2018)"
    )
    tied_embeddings: bool = Field(True, description="source, target and output layers share one embedding table")

    @model_validator(mode="after")
    def _copy_needs_attention(self) -> ModelConfig:
        if self.copy_source and self.attention == "none":
            raise ValueError("copy: true needs an attention to copy by; set attention to dot, general or additive")
        return self


class DecodingConfig(Section):
    """How a summary is searched for. Saved in the bundle as its defaults."""

    max_source_tokens: TokenCount = Field(128, description="longer sources are cut to this many subwords and marked so")
    max_target_tokens: TokenCount = Field(48, description="a summary that has not ended by then is cut")
    min_target_tokens: Annotated[int, Field(ge=0)] = Field(1, description="no </s> before this many subwords")
    max_target_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="also cut a summary at this many subwords for each one of its source, and max_target_extra more"
    )
    max_target_extra: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        10, description="see max_target_ratio, which must be set"
    )
    no_repeat_ngram: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        3, description="never write the same n subwords twice in a summary; 0 turns this off"
    )
    beam_size: BeamSize = Field(1, description="hypotheses followed at a time; 1 is greedy search")
    length_penalty: Annotated[float, Field(ge=0, le=100)] = Field(
        0.6, description="beam search: how much longer hypotheses are favoured (alpha in Wu et al. 2016, eq. 14)"
    )
    coverage_penalty: Annotated[float, Field(ge=0)] = Field(
        0.0, description="beam search: weight of having attended to all of the source (beta there); needs attention"
    )

    @model_validator(mode="after")
    def _can_end(self) -> DecodingConfig:
        if self.min_target_tokens > self.max_target_tokens:
            raise ValueError(f"min_target_tokens {self.min_target_tokens} is over max_target_tokens {self.max_target_tokens}")
        return self


class DecodingOverrides(Section):
    """Decoding options that replace the bundle's own; unset ones keep them."""

    max_source_tokens: Positive | None = Field(None, description="longer sources are cut to this many subwords and marked so")
    max_target_tokens: Positive | None = Field(None, description="a summary that has not ended by then is cut")
    min_target_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="no </s> before this many subwords")
    max_target_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="also cut a summary at this many subwords for each one of its source, and max_target_extra more"
    )
    max_target_extra: Annotated[int, Field(ge=0)] | None = Field(None, description="see max_target_ratio, which must be set")
    no_repeat_ngram: Annotated[int, Field(ge=0)] | None = Field(
        None, description="never write the same n subwords twice in a summary; 0 turns this off"
    )
    beam_size: Positive | None = Field(None, description="hypotheses followed at a time; 1 is greedy search")
    length_penalty: Annotated[float, Field(ge=0)] | None = Field(
        None, description="beam search: how much longer hypotheses are favoured (alpha in Wu et al. 2016, eq. 14)"
    )
    coverage_penalty: Annotated[float, Field(ge=0)] | None = Field(
        None, description="beam search: weight of having attended to all of the source (beta there); needs attention"
    )

    def applied_to(self, defaults: DecodingConfig, model: ModelConfig) -> DecodingConfig:
        """The bundle's options with those set here put over them; UserError if they do not go together, or with the model."""
        try:
            options = DecodingConfig.model_validate(defaults.model_dump() | self.model_dump(exclude_none=True))
        except ValidationError as error:
            raise UserError(
                f"the options of --decoding do not go with the model's own: {describe_validation_error(error)}"
            ) from None
        if self.coverage_penalty and model.attention == "none":
            raise UserError("--decoding.coverage_penalty goes by attention, of which this model has none; leave it out")
        return options


class ModelPath(Section):
    """The model bundle."""

    path: str = Field(str(SAMPLE / "model"), description="model bundle, a folder")
