"""The typed tree that a file in `configs/` returns.

Every field has a type and a default that works; `jaxsft.validation` refuses what cannot. Names that TRL users know keep
their meaning (`max_length`, `packing`, `learning_rate`).
"""

from jaxsft.config.adapter import AdapterConfig, LoRAConfig, LoRAMoEConfig, RowsConfig, SpIELConfig, SPPConfig
from jaxsft.config.compression import CompressConfig
from jaxsft.config.data import ClassesConfig, DataConfig, DCoTConfig, MixtureConfig, SourceConfig, TypesConfig
from jaxsft.config.evaluation import (
    AnswerConfig,
    CodeConfig,
    EvalConfig,
    EvaluateConfig,
    ForgettingConfig,
    FormatConfig,
    PromptConfig,
    ShotsConfig,
    SuiteConfig,
    TaskConfig,
)
from jaxsft.config.jobs import DisperseConfig, ExportConfig, RecipeConfig, ScoreConfig, StageConfig
from jaxsft.config.merging import MergeConfig, MergeRule, SearchConfig
from jaxsft.config.mixing import LeakConfig, MixConfig, RewordConfig
from jaxsft.config.model import MeshConfig, ModelConfig, NewModelConfig
from jaxsft.config.objective import ObjectiveConfig, ReferenceConfig, RegularizersConfig
from jaxsft.config.pruning import DSnoTConfig, PruneConfig
from jaxsft.config.synthesis import (
    EvolInstructConfig,
    JudgeConfig,
    LaMiniConfig,
    OrcaConfig,
    ParaphraseConfig,
    SDFTConfig,
    SelfPlayConfig,
    SelfSampleConfig,
    SynthesisConfig,
)
from jaxsft.config.tokens import TokensConfig
from jaxsft.config.training import CheckpointConfig, LogConfig, OptimizerConfig, TrainConfig

__all__ = [
    "AdapterConfig",
    "AnswerConfig",
    "CheckpointConfig",
    "ClassesConfig",
    "CodeConfig",
    "CompressConfig",
    "DCoTConfig",
    "DSnoTConfig",
    "DataConfig",
    "DisperseConfig",
    "EvalConfig",
    "EvaluateConfig",
    "EvolInstructConfig",
    "ExportConfig",
    "ForgettingConfig",
    "FormatConfig",
    "JudgeConfig",
    "LaMiniConfig",
    "LeakConfig",
    "LoRAConfig",
    "LoRAMoEConfig",
    "LogConfig",
    "MergeConfig",
    "MergeRule",
    "MeshConfig",
    "MixConfig",
    "MixtureConfig",
    "ModelConfig",
    "NewModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "OrcaConfig",
    "ParaphraseConfig",
    "PromptConfig",
    "PruneConfig",
    "RecipeConfig",
    "ReferenceConfig",
    "RegularizersConfig",
    "RewordConfig",
    "RowsConfig",
    "SDFTConfig",
    "SPPConfig",
    "ScoreConfig",
    "SearchConfig",
    "SelfPlayConfig",
    "SelfSampleConfig",
    "ShotsConfig",
    "SourceConfig",
    "SpIELConfig",
    "StageConfig",
    "SuiteConfig",
    "SynthesisConfig",
    "TaskConfig",
    "TokensConfig",
    "TrainConfig",
    "TypesConfig",
]
