"""What save_pretrained writes beside the settings: which fields are not ours, and how stock tools find our classes.

A field that nobody knows may change what a model computes, so a config.json with one is refused. A field that a program
sets on a configuration of ours cannot: it was saved by classes that do not read it. Its name is written into
`extra_fields`, by which the file can be read again, whatever it is.

`auto_map` names a small file beside config.json that imports hgrn2: with trust_remote_code=True the Auto classes find
our classes without an import of ours. Our own loaders never run it.
"""

from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hgrn2.errors import UserError
from hgrn2.files import write_text
from hgrn2.models.convert.fields import GENERIC

LIBRARY = frozenset({
    "quantization_config", "attn_implementation", "experts_implementation", "name_or_path", "num_labels",
    "per_layer_config", "is_assistant", "unsloth_version", "unsloth_fixed", "transformers.js_config",
})  # fmt: skip
"""What transformers and its companions write into a configuration beside `convert.fields.GENERIC`."""
EXTRA = "extra_fields"
HINT = f"remove those that do not from config.json, or name them in its {EXTRA}"
MODULE = "modeling_hgrn2"
REMOTE = '''"""Where transformers finds the classes of this model (trust_remote_code=True): in the package hgrn2."""

try:
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
except ImportError as missing:
    raise ImportError(
        f"this model is computed by the package hgrn2 ({missing}): pip install 'hgrn2[hf]'"
    ) from missing
'''


class Saved(PreTrainedConfig):
    """A configuration whose files load again, with every field that was set on it."""

    auto_classes: ClassVar[dict[str, str]] = {}
    """Auto class -> class of ours, for which a folder names the remote code."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: the library would copy our source files into every folder that is saved."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the names of those that are not ours or the library's."""
        values = super().to_dict()
        values.pop(EXTRA, None)
        extra = sorted(set(values) - known(type(self)))
        return values | ({EXTRA: extra} if extra else {})

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """config.json as the library writes it, and beside it the file that `auto_map` names."""
        self.auto_map = {auto: f"{MODULE}.{name}" for auto, name in self.auto_classes.items()}
        folder = Path(save_directory)
        if not folder.is_file():  # which the library refuses
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{MODULE}.py", REMOTE)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def known(kind: type[Saved]) -> set[str]:
    """Names that need no mention in a file: fields of our classes, and what every version of the library understands.

    A name that a later version adds is mentioned, so that earlier ones read the file too.
    """
    own = [base for base in kind.__mro__ if issubclass(base, Saved)]
    declared = {name for base in own for name in vars(base).get("__annotations__", ())}
    return declared | set(kind.attribute_map) | GENERIC | LIBRARY


def foreign(kind: type[Saved], given: dict[str, Any]) -> dict[str, Any]:
    """Of the fields that no class declares, those that have to be understood: neither private, nor the library's, nor
    named by `extra_fields`, which is taken out of `given`."""
    extra = given.pop(EXTRA, [])
    if not isinstance(extra, list) or not all(isinstance(name, str) for name in extra):
        raise UserError(f"{kind.__name__}: {EXTRA} must be a list of names")
    spared = LIBRARY | set(extra)
    return {name: value for name, value in given.items() if not name.startswith("_") and name not in spared}
