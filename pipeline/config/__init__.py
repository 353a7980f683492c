"""One typed, validated configuration per job.

What the options are, what they may be and what they default to. Nothing here knows what they do, nor where their values
come from (options.py).
"""

from pipeline.config.evaluate import (
    EvaluateConfig,
    EvaluateInput,
    EvaluateOutput,
    EvaluateResources,
    MetricsOptions,
)
from pipeline.config.model import (
    DecodingConfig,
    DecodingOverrides,
    ModelConfig,
    ModelPath,
)
from pipeline.config.output import (
    CompactConfig,
    OutputOfRuns,
    StatusConfig,
    StatusOutput,
    VerifyConfig,
    VerifyOutput,
)
from pipeline.config.prepare import (
    PairsFilter,
    PairsInput,
    PrepareConfig,
    PrepareOutput,
    TokenizerConfig,
)
from pipeline.config.stores import (
    DeliverConfig,
    DeliverInput,
    DeliverOutput,
    FetchConfig,
    FetchInput,
    FetchOutput,
    StoreSection,
)
from pipeline.config.summarize import (
    DocumentsInput,
    Resources,
    SummarizeConfig,
    SummarizeOutput,
)
from pipeline.config.train import (
    ScalingSection,
    TrainConfig,
    TrainData,
    TrainingConfig,
    TrainOutput,
)
from pipeline.config.values import (
    BOS,
    EOS,
    PAD,
    RUN_ID,
    SAMPLE,
    UNK,
    DecodePrecision,
    Depth,
    Hypotheses,
    Positive,
    Precision,
    RunId,
    Share,
    Subwords,
    Width,
)
from pipeline.config.watch import (
    WatchSection,
)

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "RUN_ID",
    "SAMPLE",
    "UNK",
    "CompactConfig",
    "DecodePrecision",
    "DecodingConfig",
    "DecodingOverrides",
    "DeliverConfig",
    "DeliverInput",
    "DeliverOutput",
    "Depth",
    "DocumentsInput",
    "EvaluateConfig",
    "EvaluateInput",
    "EvaluateOutput",
    "EvaluateResources",
    "FetchConfig",
    "FetchInput",
    "FetchOutput",
    "Hypotheses",
    "MetricsOptions",
    "ModelConfig",
    "ModelPath",
    "OutputOfRuns",
    "PairsFilter",
    "PairsInput",
    "Positive",
    "Precision",
    "PrepareConfig",
    "PrepareOutput",
    "Resources",
    "RunId",
    "ScalingSection",
    "Share",
    "StatusConfig",
    "StatusOutput",
    "StoreSection",
    "Subwords",
    "SummarizeConfig",
    "SummarizeOutput",
    "TokenizerConfig",
    "TrainConfig",
    "TrainData",
    "TrainOutput",
    "TrainingConfig",
    "VerifyConfig",
    "VerifyOutput",
    "WatchSection",
    "Width",
]
