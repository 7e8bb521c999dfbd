"""transformers' base classes around our language model: arguments and results of theirs, every computation ours."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from hgrn2.errors import UserError
from hgrn2.models.config import InitConfig
from hgrn2.models.hf import packing
from hgrn2.models.hf.cache import HGRN2Cache, Identity
from hgrn2.models.hf.configuration import HGRN1Config, HGRN2Config
from hgrn2.models.hf.loading import load_folder
from hgrn2.models.hf.publishing import WithCard
from hgrn2.models.init import initialise
from hgrn2.models.language import LanguageModel
from hgrn2.settings import refuse


class HGRN2PreTrainedModel(WithCard, PreTrainedModel):
    """What both models share: initial weights, and loading of folders in either layout."""

    config_class = HGRN2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (the library's name and type)
    # A cache is updated in place, so no copy of it is handed down; its layers move by themselves.
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 (the library's name and type)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for folders of ours and of flash-linear-attention (fla-hub).

        Weights are stored under our own names, so that whatever reads a state dict by the module's names (Trainer,
        accelerate, PEFT, quantisers) needs no translation; folders of fla-hub, whose projections lie apart, are
        translated here, on the way in. `hgrn2 convert to-fla` writes theirs.

        Raises:
            UserError: a missing, damaged or unfitting file; nothing is loaded then.
        """
        return load_folder(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: the library would copy our source files into every folder that is saved; see `saving`."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside transformers the library passes over modules without parameters of their own, the
        # LanguageModel among them; what is loaded already is spared below.
        super()._initialize_weights(module, False)

    def _init_weights(self, module: nn.Module) -> None:
        # Children come first, and are left alone: how a weight starts depends on where it stands.
        if isinstance(module, LanguageModel):
            start(module, self.config.to_model_config().init)
        elif module is getattr(self, "lm_head", None):
            # The library has wrapped torch.nn.init here, so that a head that was loaded keeps its values.
            nn.init.normal_(self.lm_head.weight, std=self.config.initializer_range)


class HGRN2Model(HGRN2PreTrainedModel):
    """Tokens to features: `LanguageModel` without its head."""

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__(config)
        settings = config.to_model_config()
        self.language = LanguageModel(replace(settings, tie_embeddings=True))  # tied: no second head
        if self.language.embedding.weight.device.type != "meta":
            self.language._is_hf_initialized = True  # pyright: ignore[reportArgumentType]  (done just now)
        self.identity = Identity()
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.language.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HGRN2Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        recorded: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Features of the last norm [B,T,D].

        Args:
            input_ids: [B,T]; or inputs_embeds [B,T,D].
            attention_mask: [B,T], or [B,P+T] with the P columns that the cache has read; 0 marks padding, which leaves
                states alone wherever it stands. With a cache a row must not end in padding.
            position_ids: where they begin again at 0 within a row without padding, a new document begins and the state
                with it. They mean nothing else to a recurrent model.
            past_key_values: an `HGRN2Cache`, updated and returned.
            use_cache: make a cache where none is given; by default the configuration's, and never in training.
            cu_seq_lens_q: offsets of packed documents in one row, instead of position_ids.
            recorded: with a recording cache, how many of the last columns may be taken back.

        Raises:
            UserError: a cache of another kind, model or batch size, a row that ends in padding beside a cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        x = input_ids if input_ids is not None else inputs_embeds
        assert x is not None
        use_cache = use_cache if use_cache is not None else (self.config.use_cache and not self.training)
        cache = past_key_values
        self._check_cache(cache, x)
        padding_mask = _kept(attention_mask, x, cache)
        if cache is None and use_cache:
            cache = HGRN2Cache()
        wanted = output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        offsets = None
        if cu_seq_lens_q is not None:
            offsets = packing.checked(cu_seq_lens_q, *x.shape[:2])
        elif padding_mask is None:
            offsets = packing.starts_of(position_ids, *x.shape[:2])
        if offsets is not None and cache is not None and cache.recording:
            raise UserError("a cache cannot record packed documents: leave out position_ids that begin again at 0")
        if offsets is not None and padding_mask is not None:
            raise UserError("cu_seq_lens_q packs documents without padding: leave attention_mask out")
        self.language.backbone.recompute_blocks = self.gradient_checkpointing and self.training
        trace: list[Tensor] | None = [] if wanted else None
        features = self._read(x, padding_mask, offsets, cache, trace, recorded)
        found = BaseModelOutputWithPast(
            last_hidden_state=features,  # pyright: ignore[reportArgumentType]
            past_key_values=cache,
            hidden_states=None if trace is None else tuple(trace),  # pyright: ignore[reportArgumentType]
        )
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return found if as_dict else found.to_tuple()

    def _read(
        self, x: Tensor, padding_mask: Tensor | None, offsets: Tensor | None, cache: HGRN2Cache | None,
        trace: list[Tensor] | None, recorded: int | None,
    ) -> Tensor:  # fmt: skip
        """Features of x, the cache brought up to date."""
        if cache is None or not cache.recording:
            return self._advance(x, padding_mask, offsets, cache, trace)
        if cache.waiting is not None:  # these are final now, and their features were used already
            late, seen = cache.waiting, cache.seen
            cache.accept()
            self._advance(late.ids, late.padding_mask, None, cache, None)
            cache.accept()
            cache.seen = seen
        if recorded is None or recorded >= x.shape[1]:
            return self._advance(x, padding_mask, offsets, cache, trace)
        parts, traces = [], []
        for piece in (slice(None, -recorded), slice(-recorded, None)):
            traces.append(None if trace is None else [])
            parts.append(
                self._advance(
                    x[:, piece], None if padding_mask is None else padding_mask[:, piece], None, cache, traces[-1]
                )
            )
            if piece.stop is not None:
                cache.accept()
        if trace is not None:
            trace += [torch.cat(both, 1) for both in zip(*traces, strict=True)]
        return torch.cat(parts, 1)

    def _advance(
        self, x: Tensor, padding_mask: Tensor | None, offsets: Tensor | None, cache: HGRN2Cache | None,
        trace: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        start = None if cache is None else cache.held
        if offsets is not None:
            features, state = packing.read_documents(self.language, x, start, offsets, trace)
        else:
            inplace = cache is not None and _writable(cache)
            features, state = self.language.hidden(
                x, start, padding_mask=padding_mask, output_state=cache is not None, inplace=inplace, trace=trace
            )
        if cache is not None:
            assert state is not None
            cache.record(x, padding_mask)
            cache.held, cache.made = state, True
            cache.owner = self.identity
            cache.seen += x.shape[1]
        return features

    def _check_cache(self, cache: Any, x: Tensor) -> None:
        if cache is None:
            return
        if not isinstance(cache, HGRN2Cache):
            raise UserError(f"past_key_values is a {type(cache).__name__}; this model needs an HGRN2Cache")
        if cache.held is None:
            return
        refuse(
            cache.owner not in (None, self.identity),
            "this cache was filled by another model; its states mean nothing to this one",
        )
        refuse(
            cache.batch_size != x.shape[0],
            f"this cache holds {cache.batch_size} sequences, the input {x.shape[0]}; start a new one, or use "
            "cache.batch_repeat_interleave or batch_select_indices",
        )


class HGRN1Model(HGRN2Model):
    """HGRN1, real or complex, to features."""

    config_class = HGRN1Config


def start(module: nn.Module, config: InitConfig) -> None:
    """Initial values for what was not loaded of a model of ours; what was, running statistics too, stays."""
    tensors = [*module.parameters(), *module.buffers()]
    loaded = [x for x in tensors if getattr(x, "_is_hf_initialized", False)]
    if len(loaded) < len(tensors):
        values = [x.clone() for x in loaded]
        initialise(module, config)
        for tensor, value in zip(loaded, values, strict=True):
            tensor.copy_(value)


def _writable(cache: HGRN2Cache) -> bool:
    """Whether its state may be overwritten: nobody else needs it, and PyTorch lets it be changed where we are."""
    if cache.held is None or not cache.made or cache.recording or torch.is_grad_enabled():
        return False
    anywhere = torch.is_inference_mode_enabled()
    return all(not x.requires_grad and (anywhere or not x.is_inference()) for x in cache.held.tensors().values())


def _kept(mask: Tensor | None, x: Tensor, cache: HGRN2Cache | None) -> Tensor | None:
    """The mask of x as [B,T] bool, or None where nothing is padding."""
    if mask is None:
        return None
    batch, tokens = x.shape[:2]
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < tokens:
        raise UserError(
            f"attention_mask must be [{batch}, {tokens}] or longer by what was read; got {list(mask.shape)}"
        )
    whole = mask.to(x.device) != 0
    padding_mask = whole[:, -tokens:]
    if bool(padding_mask.all()):
        return None
    if cache is not None:
        # A row without any token yet is padding on the left that has not ended (chunked prefill).
        ends = ~whole[:, -1] & whole.any(1)
        refuse(
            bool(ends.any()),
            f"row {int(ends.nonzero()[0]) if bool(ends.any()) else 0} ends in padding: with a cache, pad on the left "
            "(tokenizer.padding_side = 'left'), or call without a cache",
        )
    return padding_mask
