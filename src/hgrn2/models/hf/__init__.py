"""HGRN2 and HGRN1 for transformers; importing this registers them with the Auto classes.

import hgrn2.models.hf
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
model = transformers.AutoModelForImageClassification.from_pretrained(folder)
"""

from hgrn2.errors import UserError

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification
except ImportError as missing:
    raise UserError(f"{missing.name or 'transformers'} is not installed: pip install 'hgrn2[hf]'") from None

from hgrn2.models.hf.cache import HGRN2Cache
from hgrn2.models.hf.causal import HGRN1ForCausalLM, HGRN2ForCausalLM, from_language_model
from hgrn2.models.hf.configuration import HGRN1Config, HGRN2Config
from hgrn2.models.hf.image import HGRN1ForImageClassification, HGRN2ForImageClassification, from_vision_classifier
from hgrn2.models.hf.image_configuration import HGRN1VisionConfig, HGRN2VisionConfig
from hgrn2.models.hf.modeling import HGRN1Model, HGRN2Model, HGRN2PreTrainedModel

__all__ = [
    "HGRN1Config",
    "HGRN1ForCausalLM",
    "HGRN1ForImageClassification",
    "HGRN1Model",
    "HGRN1VisionConfig",
    "HGRN2Cache",
    "HGRN2Config",
    "HGRN2ForCausalLM",
    "HGRN2ForImageClassification",
    "HGRN2Model",
    "HGRN2PreTrainedModel",
    "HGRN2VisionConfig",
    "from_language_model",
    "from_vision_classifier",
]

for _config, _model, _head in (
    (HGRN2Config, HGRN2Model, HGRN2ForCausalLM),
    (HGRN1Config, HGRN1Model, HGRN1ForCausalLM),
):
    # flash-linear-attention registers the same model types; whoever is imported last is meant.
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _head, exist_ok=True)

for _config, _classifier in (
    (HGRN2VisionConfig, HGRN2ForImageClassification),
    (HGRN1VisionConfig, HGRN1ForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
