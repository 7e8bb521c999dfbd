"""Reading the config.json of a published model: typed fields, old names, and nothing left over unread.

A field that nobody here knows might change what the model computes, so it is refused by name; the caller may say that
it does not matter.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgrn2.errors import UserError
from hgrn2.settings import coerce, refuse

GENERIC = frozenset({
    "_name_or_path", "_commit_hash", "architectures", "auto_map", "model_type", "transformers_version", "dtype",
    "torch_dtype", "use_cache", "return_dict", "output_hidden_states", "output_attentions", "torchscript",
    "use_bfloat16", "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id",
    "decoder_start_token_id", "prefix", "id2label", "label2id", "problem_type", "task_specific_params",
    "finetuning_task", "tokenizer_class", "is_encoder_decoder", "is_decoder", "add_cross_attention",
    "cross_attention_hidden_size", "chunk_size_feed_forward", "tie_encoder_decoder", "pruned_heads", "tf_legacy_loss",
    "begin_suppress_tokens", "suppress_tokens", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty",
})  # fmt: skip
"""What transformers itself writes into every config.json; none of it changes the logits of a causal language model."""

NOTHING: Any = object()


class Fields:
    """The values of one config.json, read one by one; `finish` refuses those that were not."""

    def __init__(self, values: dict[str, Any], path: Path, hint: str = "name those that do not with --ignore") -> None:
        self.values, self.path, self.hint = values, path, hint
        self.read: set[str] = set()

    def get(self, name: str, kind: Any, default: Any, *, old: str = "", optional: bool = False) -> Any:
        """A field as int, float, bool or str.

        Args:
            default: what the published class takes where the file has no such field.
            old: the name of the field in older files; both with different values are refused.
            optional: null stands for itself.
        """
        self.read |= {name, old}
        value = self.values.get(name, NOTHING)
        before = self.values.get(old, NOTHING)
        if value is not NOTHING and before is not NOTHING:
            refuse(value != before, f"{self.path}: {name} is {value!r}, but its older name {old} is {before!r}")
        value = value if value is not NOTHING else before
        if value is NOTHING or (value is None and optional):
            return default if value is NOTHING else None
        return coerce(value, kind, f"{self.path}: {name}")

    def size(self, name: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.get(name, int, default)
        refuse(value < 1, f"{self.path}: {name} is {value}; it must be at least 1")
        return value

    def choice(self, name: str, default: str, meanings: dict[str, Any]) -> Any:
        """What one of the supported texts stands for."""
        value = self.get(name, str, default)
        if value not in meanings:
            raise UserError(f"{self.path}: {name} {value!r} is not supported; supported: {', '.join(meanings)}")
        return meanings[value]

    def must_be_off(self, name: str, what: str) -> None:
        """Refuse a variant that is switched on by any value but null, false and an empty list or object."""
        self.read.add(name)
        value = self.values.get(name)
        refuse(value not in (None, False, [], {}), f"{self.path}: {name} is set: {what} is not supported")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around making settings: what those refuse is said with the name of the file."""
        try:
            yield
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(self.path)) else f"{self.path}: {text}") from None

    def finish(self, harmless: Collection[str], ignore: Collection[str]) -> None:
        """Refuse every field that was not read, has no effect on logits, or was not declared to be ignored."""
        unknown = sorted(set(self.values) - self.read - GENERIC - set(harmless) - set(ignore))
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        refuse(
            bool(unknown),
            f"{self.path} has unknown fields: {', '.join(unknown[:5])}{more}; they may change what the model computes "
            f"({self.hint})",
        )
