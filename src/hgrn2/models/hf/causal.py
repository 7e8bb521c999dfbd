"""The language models of transformers: the base model, a head, a loss, and what `generate` asks for."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from hgrn2.errors import UserError
from hgrn2.models.hf.cache import HGRN2Cache
from hgrn2.models.hf.configuration import HGRN1Config, HGRN2Config
from hgrn2.models.hf.loss import can_fuse, next_token_loss
from hgrn2.models.hf.modeling import HGRN1Model, HGRN2Model, HGRN2PreTrainedModel
from hgrn2.models.language import LanguageModel
from hgrn2.models.plain import check_plain


class HGRN2ForCausalLM(HGRN2PreTrainedModel, GenerationMixin):
    """The language model with its head, for `generate`, `Trainer` and what builds on them.

    Example:
        >>> import torch, hgrn2
        >>> config = hgrn2.HGRN2Config(vocab_size=65, hidden_size=32, num_hidden_layers=2, num_heads=2)
        >>> model = hgrn2.HGRN2ForCausalLM(config).eval()
        >>> tuple(model.generate(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=4, do_sample=False).shape)
        (1, 7)
    """

    _tied_weights_keys = {"lm_head.weight": "model.language.embedding.weight"}  # noqa: RUF012 (the library's)

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__(config)
        self.model = self._backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @staticmethod
    def _backbone(config: HGRN2Config) -> HGRN2Model:
        return HGRN2Model(config)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HGRN2Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B,T,V], and with labels the mean cross-entropy in nats of each next label that is not -100.

        Args:
            labels: [B,T], the input ids themselves with -100 where nothing is to be predicted; shifted here.
            logits_to_keep: only the last so many logits (0: all), or those at the given columns.
            kwargs: cu_seq_lens_q as in `HGRN2Model`; those of the library's loss: num_items_in_batch of Trainer (the
                loss is a sum divided by it), shift_labels, ignore_index.

        The other arguments are those of `HGRN2Model`. With `config.fused_loss` and labels, logits are None. Where the
        head is no plain product (`hgrn2.models.hf.loss.can_fuse`) the loss is then computed from all logits as usual.
        Where no label counts, the mean is NaN, as the library's; with num_items_in_batch the loss is 0.
        """
        count = logits_to_keep if isinstance(logits_to_keep, int) and logits_to_keep > 0 else None
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            output_hidden_states=output_hidden_states, return_dict=True, recorded=count,
            cu_seq_lens_q=kwargs.get("cu_seq_lens_q"),
        )  # fmt: skip
        features: Tensor = found.last_hidden_state
        loss = logits = None
        fused = labels is not None and self.config.fused_loss
        if fused and can_fuse(self, features, logits_to_keep):
            loss = next_token_loss(features, self.lm_head.weight, labels, **kwargs)  # pyright: ignore[reportArgumentType]
        else:
            columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(features if count is None and columns == slice(0, None) else features[:, columns])
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            logits = None if fused else logits
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=found.past_key_values, hidden_states=found.hidden_states
        )
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return output if as_dict else output.to_tuple()

    def _prepare_cache_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]  (returns nothing there)
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """`generate` gets our cache, never the library's, which would forget."""
        given = model_kwargs.get("past_key_values")
        if given is not None:
            given._is_user_defined = True
            return
        if generation_config.use_cache is False:
            return
        kind = generation_config.cache_implementation
        known = (None, "dynamic", "static")  # the state has one size: it is both
        if kind not in known:
            raise UserError(
                f"cache_implementation {kind!r} is for keys and values; HGRN2 states are small: leave it out"
            )
        model_kwargs["past_key_values"] = HGRN2Cache()
        if generation_config.is_assistant:
            model_kwargs["past_key_values"].activate_past_recording()

    def to_language_model(self) -> LanguageModel:
        """Our own `LanguageModel` with these very weights (shared memory), in evaluation mode.

        Raises:
            UserError: adapters in place (merge them first), quantised or offloaded weights.
        """
        with torch.device("meta"):
            language = LanguageModel(self.config.to_model_config())
        tensors = {name.removeprefix("model.language."): value for name, value in self.state_dict().items()}
        tensors = {name.replace("lm_head.", "head.", 1): value for name, value in tensors.items()}
        if self.config.tie_word_embeddings:
            tensors.pop("head.weight", None)
        check_plain(tensors, language.state_dict(), "to_language_model")
        language.load_state_dict(tensors, assign=True)
        return language.eval()


class HGRN1ForCausalLM(HGRN2ForCausalLM):
    """HGRN1, real or complex, with its head."""

    config_class = HGRN1Config

    @staticmethod
    def _backbone(config: HGRN2Config) -> HGRN2Model:
        return HGRN1Model(config)


def from_language_model(model: LanguageModel, **more: Any) -> HGRN2ForCausalLM:
    """A language model of ours as transformers' class, with the same weights (shared memory), in evaluation mode.

    Args:
        model: as `hgrn2.models.saved.load_model` gives it.
        more: fields of the configuration, as in `eos_token_id=0`.
    """
    config = HGRN2Config.from_model_config(model.config, **more)
    kind = HGRN1ForCausalLM if isinstance(config, HGRN1Config) else HGRN2ForCausalLM
    with torch.device("meta"):
        made = kind(config)
    tensors = {
        "lm_head.weight" if name == "head.weight" else f"model.language.{name}": value
        for name, value in model.state_dict().items()
    }
    if model.head is None:
        tensors["lm_head.weight"] = model.embedding.weight
    made.load_state_dict(tensors, assign=True)
    made.tie_weights()
    return made.eval()
