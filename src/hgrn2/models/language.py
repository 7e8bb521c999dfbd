"""The language model: token embedding, backbone, next-token head."""

from typing import get_args

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.reading import Dropout
from hgrn2.layers.state import ModelState
from hgrn2.models.backbone import Backbone
from hgrn2.models.config import LossKind, ModelConfig, Recompute
from hgrn2.models.fitting import check_model
from hgrn2.models.init import initialise
from hgrn2.models.plain import device_of, dtype_of, is_product
from hgrn2.ops.arguments import check_ids, check_tensors
from hgrn2.ops.backend import has_tangents
from hgrn2.ops.linear_cross_entropy import aligned, check_targets, linear_cross_entropy
from hgrn2.settings import refuse

LARGE_VOCABULARY = 8192
"""From here on the logits of a batch outweigh what a model of usual width keeps of it."""


class LanguageModel(nn.Module):
    """Tokens [B,T] -> logits [B,T,V]; carries a constant-size state from call to call.

    Example:
        >>> import torch, hgrn2
        >>> config = hgrn2.ModelConfig(vocab_size=65, width=32, layers=2, glu_width=64,
        ...                            mixer=hgrn2.MixerConfig(head_size=16))
        >>> model = hgrn2.LanguageModel(config)
        >>> logits, state = model(torch.zeros(1, 5, dtype=torch.long))
        >>> tuple(logits.shape), state.nbytes
        ((1, 5, 65), 4096)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.dropout = Dropout(config.dropout)
        self.backbone = Backbone(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.embedding_scale = config.width**0.5 if config.scale_embeddings else 1.0
        if self.embedding.weight.device.type != "meta":
            initialise(self, config.init)

    @property
    def device(self) -> torch.device:
        """Where it computes: the device of its weights, also where a hook of accelerate fetches them at each call."""
        return device_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights; of what is not quantised, where some are."""
        return dtype_of(self)

    def zeros(self, batch: int, dtype: torch.dtype | None = None) -> ModelState:
        """The state of `batch` sequences before their first token; see `Backbone.zeros`."""
        return self.backbone.zeros(batch, dtype)

    @accepts_keep
    def hidden(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        output_state: bool = True,
        inplace: bool = False,
        trace: list[Tensor] | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """Tokens [B,T], or their embeddings [B,T,D] -> (features before the head [B,T,D], state).

        `cu_seqlens`, `padding_mask` and `inplace` as in `forward`, `trace` as in `Backbone.forward`.
        """
        self._check(tokens)
        x = tokens if tokens.is_floating_point() else self.embedding(tokens)
        x = x * self.embedding_scale if self.embedding_scale != 1.0 else x
        x = self.dropout(x)
        options = {
            "cu_seqlens": cu_seqlens,
            "padding_mask": padding_mask,
            "output_state": output_state,
            "inplace": inplace,
        }
        return self.backbone(x, state, trace=trace, **options)

    def set_recompute(self, what: Recompute) -> None:
        """Which activations a training step keeps; see `Backbone.set_recompute`."""
        self.backbone.set_recompute(what)

    def logits(self, features: Tensor) -> Tensor:
        """Features [...,D] -> logits [...,V].

        Raises:
            UserError: a head tied to an embedding with an adapter, or whose weight is offloaded.
        """
        head = self.embedding if self.head is None else self.head
        if hasattr(head, "cross_entropy"):  # of some of the classes: it puts them together
            return head.logits(features)  # pyright: ignore[reportCallIssue]
        if aligned.pays(features, self.config.vocab_size) and is_product(head, features):
            return aligned.logits(features, head.weight)  # pyright: ignore[reportArgumentType]
        if self.head is not None:
            return self.head(features)
        refuse(
            hasattr(self.embedding, "base_layer") or (self.embedding.weight.is_meta and not features.is_meta),
            f"the head is tied to an embedding of class {type(self.embedding).__name__} whose weight is adapted or "
            "offloaded: what the head computes with is not certain; merge the adapter, or untie the head",
        )
        return nn.functional.linear(features, self.embedding.weight)

    @accepts_keep
    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        output_state: bool = True,
        inplace: bool = False,
    ) -> tuple[Tensor, ModelState | None]:
        """Logits of the next token and the state after the last one.

        Args:
            tokens: [B,T] integers below vocab_size.
            state: from an earlier call on the same sequences; None starts afresh.
            cu_seqlens: offsets [N+1] of packed documents (B = 1): the state is reset at each; states are [N, ...].
            padding_mask: [B,T] bool for texts of different lengths; False marks padding, wherever it stands: states,
                gradients and the logits of other tokens are those of the text without it. Logits at padding mean
                nothing.
            inplace: the state given may be overwritten; go on with the one returned.

        Raises:
            UserError: tokens that are no integers [B,T], or outside the vocabulary (looked at on the CPU only, as a GPU
                would have to wait), a mask or a state that does not fit.
        """
        options = {
            "cu_seqlens": cu_seqlens,
            "padding_mask": padding_mask,
            "output_state": output_state,
            "inplace": inplace,
        }
        features, state = self.hidden(tokens, state, **options)
        return self.logits(features), state

    def loss(
        self, tokens: Tensor, targets: Tensor, *, cu_seqlens: Tensor | None = None, method: LossKind = "auto"
    ) -> Tensor:
        """Mean cross-entropy in nats/token, computed in float32 (float64 for a float64 model).

        Args:
            tokens, targets: [B,T] integers below vocab_size.
            cu_seqlens: as in `forward`.
            method: full keeps logits and their gradient [B,T,V] in memory; chunked never has them for more than some
                thousand tokens (`linear_cross_entropy`), and pays with products in smaller pieces; auto is chunked for
                vocabularies of 8,192 and more, where the head is a plain product: adapters, hooks and quantised
                weights are left in place, and take the full form.

        Raises:
            UserError: as `forward`; targets that are not int64 of the tokens' shape, or outside the vocabulary (-100
                does not count; looked at on the CPU), an unknown method; chunked, where the head is no plain product.
        """
        self._check_loss(tokens, targets, method)
        features, _ = self.hidden(tokens, cu_seqlens=cu_seqlens, output_state=False)
        return self._loss_of(features, targets, method)

    def loss_and_state(
        self, tokens: Tensor, targets: Tensor, state: ModelState | None, *, cu_seqlens: Tensor | None = None,
        method: LossKind = "auto",
    ) -> tuple[Tensor, ModelState]:  # fmt: skip
        """`loss` of a text that goes on from a state, and the state after its last token, for truncated
        backpropagation: `detach` it, and give it to the call on the tokens that follow.

        Args:
            tokens, targets, cu_seqlens, method: as in `loss`.
            state: of the B sequences, or of the N packed documents; None starts afresh.

        Raises:
            UserError: as `loss` and `forward`.
        """
        self._check_loss(tokens, targets, method)
        features, final = self.hidden(tokens, state, cu_seqlens=cu_seqlens)
        assert final is not None
        return self._loss_of(features, targets, method), final

    def _loss_of(self, features: Tensor, targets: Tensor, method: LossKind) -> Tensor:
        head = self.embedding if self.head is None else self.head
        shared = getattr(head, "cross_entropy", None)
        if shared is not None:  # by several processes, each with some of the classes (`hgrn2.parallel.vocabulary`)
            return shared(features, targets)
        large = self.config.vocab_size >= LARGE_VOCABULARY and not has_tangents(features, *head.parameters())
        if method == "chunked" or (method == "auto" and large):
            exact = is_product(head, features)
            if exact:
                return linear_cross_entropy(features, head.weight, targets)  # pyright: ignore[reportArgumentType]
            refuse(
                method == "chunked",
                f"method chunked reads the head's weight, and this head ({type(head).__name__}) has an adapter, a "
                "hook, a bias, or weights of another kind or place: use full",
            )
        logits = self.logits(features)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def _check(self, tokens: Tensor) -> None:
        check_tensors(tokens=tokens)
        width, found = self.config.width, f"{list(tokens.shape)} {str(tokens.dtype).removeprefix('torch.')}"
        if tokens.is_floating_point():
            if tokens.dim() != 3 or tokens.shape[2] != width:
                raise UserError(f"tokens must be integers [B,T], or embeddings [B,T,{width}]; got {found}")
            return
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise UserError(f"tokens must be [B,T] int64 or int32; got {found}")
        check_ids(tokens, self.config.vocab_size)

    def _check_loss(self, tokens: Tensor, targets: Tensor, method: str) -> None:
        if method not in get_args(LossKind):
            raise UserError(f"loss method {method!r} is unknown; choose one of {', '.join(get_args(LossKind))}")
        check_tensors(tokens=tokens, targets=targets)
        if targets.shape != tokens.shape[:2] or targets.dtype != torch.int64:
            found = f"{list(targets.shape)} {str(targets.dtype).removeprefix('torch.')}"
            raise UserError(f"targets must be {list(tokens.shape[:2])} int64, as the tokens; got {found}")
        check_targets(targets, self.config.vocab_size)

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse ids outside the vocabulary, which the embedding would read out of bounds."""
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            bad = int(tokens.max()) if int(tokens.max()) >= self.config.vocab_size else int(tokens.min())
            raise UserError(f"token id {bad} is outside the vocabulary of {self.config.vocab_size}")
