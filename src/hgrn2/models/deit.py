"""DeiT as a baseline (arXiv 2012.12877): transformers' ViT with the surface of our own image classifier.

transformers is the extra `hf` and is imported when a model is made. Its ViT has no stochastic depth, but one `dropout`
in each layer through which both branches pass before they are added: our `DropPath` stands behind it there, with rates
rising from 0 at the first block to `drop_path` at the last, as published.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hgrn2.errors import UserError
from hgrn2.layers.reading import DropPath
from hgrn2.models.config import DeiTConfig, Recompute
from hgrn2.models.fitting import check_model
from hgrn2.models.sequence import cross_entropy
from hgrn2.ops.arguments import check_tensors, check_whole
from hgrn2.settings import refuse


class DeiT(nn.Module):
    """Images [B,C,height,width] of any resolution that divides into patches -> logits [B,classes].

    Weights start as in transformers: matrices, class token and positions normal with deviation 0.02, biases at 0.

    Raises:
        UserError: transformers is not installed.

    Example:
        >>> import torch
        >>> from hgrn2.models.config import DeiTConfig
        >>> from hgrn2.models.deit import DeiT
        >>> config = DeiTConfig(classes=10, image_size=32, patch=4, width=32, layers=2, head_size=16)
        >>> tuple(DeiT(config)(torch.zeros(1, 3, 32, 32)).shape)
        (1, 10)
    """

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        self.inner = _vit(config)
        for layer, block in enumerate(self.inner.vit.layers):
            block.dropout = nn.Sequential(nn.Dropout(config.dropout), DropPath(config.drop_path_of(layer)))

    def set_recompute(self, what: Recompute) -> None:
        """As of `Backbone`; parts of a block are not told apart here, so that glu is refused."""
        refuse(what == "glu", "recompute glu is for blocks of ours; DeiT takes none or block")
        for block in self.inner.vit.layers:  # as the library's own switch does, whose name changes between versions
            block.gradient_checkpointing = what == "block"
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,classes]; positions are interpolated where the images are not of `image_size`.

        Raises:
            UserError: another number of channels, sides that are no multiples of the patch, integers.
        """
        self._check(images)
        size = self.config.image_size
        other = tuple(images.shape[2:]) != (size, size)
        return self.inner(pixel_values=images, interpolate_pos_encoding=other).logits

    def loss(self, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats, in float32; labels [B] of class numbers, or mixed ones [B,classes]."""
        return cross_entropy(self(images), labels, label_smoothing)

    @torch.no_grad()
    def top(self, images: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
        """Probabilities and class numbers [B,count] of the likeliest classes, best first; at most all of them."""
        check_whole(count, "count")
        return self(images).float().softmax(-1).topk(min(count, self.config.classes))

    def _check(self, images: Tensor) -> None:
        check_tensors(images=images)
        channels, patch = self.config.channels, self.config.patch
        if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
            kind = str(images.dtype).removeprefix("torch.")
            wanted = f"[B,{channels},height,width] floating-point"
            raise UserError(f"images must be {wanted}; got {list(images.shape)} {kind}")
        height, width = images.shape[2:]
        bad = bool(height % patch or width % patch or not height or not width)
        refuse(bad, f"images of {height} x {width} pixels do not divide into patches of {patch}")


def _vit(config: DeiTConfig) -> Any:
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as missing:
        name = missing.name or "transformers"
        raise UserError(f"DeiT needs {name}, which is not installed: pip install 'hgrn2[hf]'") from None
    settings = ViTConfig(
        hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        intermediate_size=4 * config.width, hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6, image_size=config.image_size, patch_size=config.patch, num_channels=config.channels,
        num_labels=config.classes,  # pyright: ignore[reportCallIssue]  (of the library's base class)
    )  # fmt: skip
    return ViTForImageClassification(settings)
