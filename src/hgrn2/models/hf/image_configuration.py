"""`HGRN2VisionConfig` and `HGRN1VisionConfig`: the fields of our `VisionConfig`, classes named as in transformers."""

from dataclasses import fields
from typing import Any, ClassVar

from hgrn2.errors import UserError
from hgrn2.models.config import VisionConfig
from hgrn2.models.convert.fields import GENERIC
from hgrn2.models.hf.saving import HINT, Saved, foreign
from hgrn2.models.presets import vision_preset
from hgrn2.settings import from_dict, refuse, to_dict

OWN = tuple(field.name for field in fields(VisionConfig) if field.name not in ("classes", "pattern", "other"))
"""Fields that mean the same here and in `VisionConfig`; all layers are of one kind."""


class HGRN2VisionConfig(Saved):
    """Settings of an HGRN2 image classifier for transformers.

    Every field but the number of classes (`num_labels`, or `id2label`) is one of `hgrn2.models.config.VisionConfig` and
    explained there; `mixer` and `init` are objects with the fields of `MixerConfig` and `InitConfig`. What is not given
    is that of the preset hgrn2_vit_tiny, and `hidden_size`, `num_hidden_layers`, `patch_size` and `num_channels` are
    other names of width, layers, patch and channels.

    Raises:
        UserError: values that do not fit, fields that nobody knows, a mixer of another family.

    Example:
        >>> import hgrn2
        >>> config = hgrn2.HGRN2VisionConfig(num_labels=10, image_size=32, patch=4, width=64, mixer={"head_size": 16})
        >>> config.to_vision_config().mixer.head_size
        16
    """

    model_type = "hgrn2_vision"
    attribute_map = {  # noqa: RUF012 (the library's name and type)
        "hidden_size": "width", "num_hidden_layers": "layers", "patch_size": "patch", "num_channels": "channels",
    }  # fmt: skip
    auto_classes: ClassVar = {
        "AutoConfig": "HGRN2VisionConfig", "AutoModelForImageClassification": "HGRN2ForImageClassification",
    }  # fmt: skip
    kinds = ("hgru2",)
    preset = "hgrn2_vit_tiny"

    image_size: int | None = None
    patch: int | None = None
    channels: int | None = None
    width: int | None = None
    layers: int | None = None
    mixer: dict[str, Any] | None = None
    """A mixer that is given replaces the preset's in the fields it names."""
    glu_width: int | None = None
    """None: as many times the width as in the preset."""
    glu_activation: str | None = None
    glu_bias: bool | None = None
    norm: str | None = None
    norm_eps: float | None = None
    head_norm: str | None = None
    positions: str | None = None
    dropout: float | None = None
    drop_path: float | None = None
    lower_bound: str | None = None
    init: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(set(foreign(type(self), kwargs)) - GENERIC - set(self.attribute_map))
        name = type(self).__name__
        refuse(bool(unknown), f"{name} has unknown fields: {', '.join(unknown[:5])} ({HINT})")
        super().__post_init__(**kwargs)
        base: Any = vision_preset(self.preset)
        if self.width is not None and self.glu_width is None and isinstance(self.width, int):
            self.glu_width = self.width * base.glu_width // base.width
        for field in OWN:
            given, usual = getattr(self, field), getattr(base, field)
            usual = to_dict(usual) if field in ("mixer", "init") else usual
            if given is None:
                setattr(self, field, usual)
            elif isinstance(usual, dict) and isinstance(given, dict):
                setattr(self, field, usual | given)
        self.to_vision_config()  # refuses what does not fit together

    def to_vision_config(self) -> VisionConfig:
        """The same settings as `VisionConfig`, from the fields as they are now."""
        values = {name: getattr(self, name) for name in OWN} | {"classes": self.num_labels}
        name = type(self).__name__
        try:
            made = from_dict(VisionConfig, values, name)
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(name) else f"{name}: {text}") from None
        refuse(made.mixer.kind not in self.kinds, f"{name}: mixer {made.mixer.kind} is none of {', '.join(self.kinds)}")
        return made

    @classmethod
    def from_vision_config(cls, config: VisionConfig, **more: Any) -> "HGRN2VisionConfig":
        """The settings of a model of ours; `more` are fields of transformers, as in `id2label={0: "cat", 1: "dog"}`."""
        kind = next((k for k in (HGRN2VisionConfig, HGRN1VisionConfig) if config.named_kinds in k.kinds), None)
        if kind is None:
            raise UserError(f"a model with {config.named_kinds} has no transformers class here; those of HGRN do")
        values = to_dict(config)
        classes = values.pop("classes")
        del values["pattern"], values["other"]  # one kind, as asked above
        names = more.get("id2label")
        wrong = names is not None and len(names) != classes
        refuse(wrong, f"id2label names {len(names or ())} classes, the model has {classes}")
        return kind(**values | ({} if names else {"num_labels": classes}) | more)


class HGRN1VisionConfig(HGRN2VisionConfig):
    """Settings of an HGRN1 image classifier, complex (hgru1) or real (hgru1_real); preset hgrn1_vit_tiny."""

    model_type = "hgrn_vision"
    auto_classes: ClassVar = {
        "AutoConfig": "HGRN1VisionConfig", "AutoModelForImageClassification": "HGRN1ForImageClassification",
    }  # fmt: skip
    kinds = ("hgru1", "hgru1_real")
    preset = "hgrn1_vit_tiny"
