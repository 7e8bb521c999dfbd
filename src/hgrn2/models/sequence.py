"""The sequence classifier: tokens or real-valued vectors, backbone, mean over the sequence, classes. Also for pairs."""

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.directions import Shape
from hgrn2.layers.embedding import Positions
from hgrn2.layers.heads import PairHead, PoolHead
from hgrn2.layers.masking import accepts_keep
from hgrn2.layers.norm import Norm
from hgrn2.layers.reading import Dropout
from hgrn2.models.backbone import Backbone
from hgrn2.models.config import ClassifierConfig, Recompute, SequenceConfig
from hgrn2.models.fitting import check_model
from hgrn2.models.init import initialise
from hgrn2.ops.arguments import check_ids, check_tensors


class SequenceClassifier(nn.Module):
    """Sequences [B,T] of token ids or [B,T,C] of real vectors -> logits [B,classes]; pairs are [B,2,T] or [B,2,T,C].

    Example:
        >>> import torch, hgrn2
        >>> from hgrn2.models.config import SequenceConfig
        >>> from hgrn2.models.sequence import SequenceClassifier
        >>> mixer = hgrn2.MixerConfig(head_size=4, direction="bidirectional")
        >>> config = SequenceConfig(vocab_size=20, classes=10, width=32, layers=2, glu_width=32, mixer=mixer)
        >>> model = SequenceClassifier(config)
        >>> keep = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])  # sequences of 7 and of 4 tokens
        >>> tuple(model(torch.zeros(2, 7, dtype=torch.long), keep).shape)
        (2, 10)
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        ids = config.vocab_size > 0
        self.embedding = nn.Embedding(config.vocab_size, config.width) if ids else None
        self.input = None if ids else nn.Linear(config.channels, config.width)
        self.positions = Positions(config.positions, config.width, (config.max_length,))
        self.dropout = Dropout(config.dropout)
        self.backbone = Backbone(config, final_norm=config.head_norm == "tokens")
        head = PairHead if config.pair else PoolHead
        self.head = head(config.width, config.classes, head_norm(config))
        if self.head.proj.weight.device.type != "meta":
            initialise(self, config.init)

    def set_recompute(self, what: Recompute) -> None:
        """Which activations a training step keeps; see `Backbone.set_recompute`."""
        self.backbone.set_recompute(what)

    @accepts_keep
    def hidden(self, inputs: Tensor, padding_mask: Tensor | None = None, *, shape: Shape | None = None) -> Tensor:
        """Features [B,T,D] ([2B,T,D] for pairs: first and second of a pair side by side) before the head."""
        if self.config.pair:
            inputs, padding_mask = inputs.flatten(0, 1), None if padding_mask is None else padding_mask.flatten(0, 1)
        if self.embedding is not None:
            x = self.embedding(inputs)
        else:
            assert self.input is not None
            x = self.input(inputs.to(self.input.weight.dtype))
        x = self.dropout(self.positions.line(x))
        x, _ = self.backbone(x, padding_mask=padding_mask, shape=shape, output_state=False)
        return x

    @accepts_keep
    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None, *, shape: Shape | None = None) -> Tensor:
        """Logits [B,classes].

        Args:
            inputs: ids [B,T] below vocab_size, or real vectors [B,T,channels]; with an axis of 2 after B for pairs.
            keep: bool, [B,T] or [B,2,T]; False marks padding, wherever it stands: the logits are those without it. A
                learned position is that of the place in the padded row, so pad on the right with them.
            shape: (height, width) of the image that a sequence is, for mixers of a 2-D direction.

        Raises:
            UserError: axes, channels or a mask that do not fit, a sequence longer than its positions.
        """
        self._check(inputs, padding_mask)
        x = self.hidden(inputs, padding_mask, shape=shape)
        return self.head(x.unflatten(0, (-1, 2)) if self.config.pair else x, padding_mask)

    @accepts_keep
    def loss(
        self, inputs: Tensor, labels: Tensor, padding_mask: Tensor | None = None, *, shape: Shape | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Mean cross-entropy in nats, in float32; labels [B] of class numbers."""
        return cross_entropy(self(inputs, padding_mask, shape=shape), labels, label_smoothing)

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse ids outside the vocabulary, which the embedding would read out of bounds; reads device memory."""
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            bad = int(tokens.max()) if int(tokens.max()) >= self.config.vocab_size else int(tokens.min())
            raise UserError(f"token id {bad} is outside the vocabulary of {self.config.vocab_size}")

    def _check(self, inputs: Tensor, padding_mask: Tensor | None) -> None:
        check_tensors(inputs=inputs, padding_mask=padding_mask)
        config, ids = self.config, self.embedding is not None
        axes = 2 + config.pair + (not ids)
        fits = inputs.dim() == axes and (not config.pair or inputs.shape[1] == 2) and inputs.shape[axes - 1] != 0
        fits = fits and (ids or inputs.shape[-1] == config.channels) and inputs.is_floating_point() != ids
        if not fits:
            wanted = f"[B{',2' if config.pair else ''},T{'' if ids else f',{config.channels}'}]"
            kind = "integer" if ids else "floating-point"
            found = f"{list(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
            raise UserError(f"inputs must be {wanted} {kind}; got {found}")
        if ids:
            check_ids(inputs, config.vocab_size)
        steps = inputs.shape if ids else inputs.shape[:-1]
        if padding_mask is not None and (padding_mask.shape != steps or padding_mask.dtype != torch.bool):
            kind = str(padding_mask.dtype).removeprefix("torch.")
            raise UserError(
                f"padding_mask must be {list(steps)} bool, one value per step; got {list(padding_mask.shape)} {kind}"
            )


def head_norm(config: ClassifierConfig) -> Norm | None:
    """The norm between mean and linear map, where the settings put it there."""
    return None if config.head_norm == "tokens" else Norm(config.head_norm, config.width, config.norm_eps)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, in float32 (float64 for a float64 model); labels [B], or a distribution [B,classes].

    Raises:
        UserError: labels that do not fit, or name no class (looked at on the CPU only), a smoothing outside [0,1].
    """
    check_tensors(logits=logits, labels=labels)
    whole = labels.dtype == torch.int64 and labels.shape == logits.shape[:1]
    if not whole and not (labels.is_floating_point() and labels.shape == logits.shape):
        wanted = f"[{logits.shape[0]}] int64, or probabilities {list(logits.shape)}"
        found = f"{list(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        raise UserError(f"labels must be {wanted}; got {found}")
    if whole:
        check_ids(labels, logits.shape[1], "label", "the classes, of which there are")
    if not 0 <= label_smoothing <= 1:
        raise UserError(f"label_smoothing is {label_smoothing}; it must be in [0, 1]")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    labels = labels.to(logits.dtype) if labels.is_floating_point() else labels
    return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
