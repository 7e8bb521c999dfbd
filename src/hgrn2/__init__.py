"""HGRN2: gated linear recurrent networks with state expansion, for training, evaluation, generation and more.

`import hgrn2` is cheap: every public name below loads its module, and torch with it, at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ops": "hgrn2.ops",
    "layers": "hgrn2.layers",
    "models": "hgrn2.models",
    "LanguageModel": "hgrn2.models.language",
    "ModelConfig": "hgrn2.models.config",
    "MixerConfig": "hgrn2.layers.config",
    "preset": "hgrn2.models.presets",
    "ModelState": "hgrn2.layers.state",
    "UserError": "hgrn2.errors",
    "HGRN1Config": "hgrn2.models.hf",
    "HGRN1ForCausalLM": "hgrn2.models.hf",
    "HGRN1ForImageClassification": "hgrn2.models.hf",
    "HGRN1Model": "hgrn2.models.hf",
    "HGRN1VisionConfig": "hgrn2.models.hf",
    "HGRN2Config": "hgrn2.models.hf",
    "HGRN2ForCausalLM": "hgrn2.models.hf",
    "HGRN2ForImageClassification": "hgrn2.models.hf",
    "HGRN2Model": "hgrn2.models.hf",
    "HGRN2VisionConfig": "hgrn2.models.hf",
}

__all__ = [
    "HGRN1Config",
    "HGRN1ForCausalLM",
    "HGRN1ForImageClassification",
    "HGRN1Model",
    "HGRN1VisionConfig",
    "HGRN2Config",
    "HGRN2ForCausalLM",
    "HGRN2ForImageClassification",
    "HGRN2Model",
    "HGRN2VisionConfig",
    "LanguageModel",
    "MixerConfig",
    "ModelConfig",
    "ModelState",
    "UserError",
    "__version__",
    "layers",
    "models",
    "ops",
    "preset",
]

if TYPE_CHECKING:
    from hgrn2 import layers, models, ops
    from hgrn2.errors import UserError
    from hgrn2.layers.config import MixerConfig
    from hgrn2.layers.state import ModelState
    from hgrn2.models.config import ModelConfig
    from hgrn2.models.hf import (
        HGRN1Config,
        HGRN1ForCausalLM,
        HGRN1ForImageClassification,
        HGRN1Model,
        HGRN1VisionConfig,
        HGRN2Config,
        HGRN2ForCausalLM,
        HGRN2ForImageClassification,
        HGRN2Model,
        HGRN2VisionConfig,
    )
    from hgrn2.models.language import LanguageModel
    from hgrn2.models.presets import preset


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hgrn2' has no attribute {name!r}")
    module = import_module(_HOME[name])
    return module if _HOME[name] == f"hgrn2.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
