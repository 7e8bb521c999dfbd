"""The image classifier: patches or pixels as tokens, backbone, mean over the image, classes. No class token."""

import torch
from torch import Tensor, nn

from hgrn2.layers.embedding import PatchEmbedding, Positions
from hgrn2.layers.heads import PoolHead
from hgrn2.layers.reading import Dropout
from hgrn2.models.backbone import Backbone
from hgrn2.models.config import Recompute, VisionConfig
from hgrn2.models.fitting import check_model
from hgrn2.models.init import initialise
from hgrn2.models.sequence import cross_entropy, head_norm
from hgrn2.ops.arguments import check_whole


class VisionClassifier(nn.Module):
    """Images [B,C,height,width] of any resolution that divides into patches -> logits [B,classes].

    Example:
        >>> import torch, hgrn2
        >>> from hgrn2.models.config import VisionConfig
        >>> from hgrn2.models.vision import VisionClassifier
        >>> mixer = hgrn2.MixerConfig(head_size=2, direction="parallel_2d")
        >>> config = VisionConfig(classes=10, image_size=32, patch=4, width=32, layers=2, glu_width=32, mixer=mixer)
        >>> tuple(VisionClassifier(config)(torch.zeros(1, 3, 32, 48)).shape)
        (1, 10)
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        self.patches = PatchEmbedding(config.channels, config.patch, config.width)
        self.positions = Positions(config.positions, config.width, (config.grid, config.grid))
        self.dropout = Dropout(config.dropout)
        self.backbone = Backbone(config, final_norm=config.head_norm == "tokens")
        self.head = PoolHead(config.width, config.classes, head_norm(config))
        if self.head.proj.weight.device.type != "meta":
            initialise(self, config.init)

    def set_recompute(self, what: Recompute) -> None:
        """Which activations a training step keeps; see `Backbone.set_recompute`."""
        self.backbone.set_recompute(what)

    def hidden(self, images: Tensor, *, trace: list[Tensor] | None = None) -> Tensor:
        """Features [B,h·w,D] of the patches, row by row, before the head; `trace` receives the input of each block and
        the features."""
        x, shape = self.patches(images)
        x = self.dropout(self.positions.image(x, shape))
        x, _ = self.backbone(x, shape=shape if self.config.is_2d else None, output_state=False, trace=trace)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,classes].

        Raises:
            UserError: another number of channels, sides that are no multiples of the patch.
        """
        return self.head(self.hidden(images))

    def loss(self, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats, in float32; labels [B] of class numbers, or mixed ones [B,classes]."""
        return cross_entropy(self(images), labels, label_smoothing)

    @torch.no_grad()
    def top(self, images: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
        """Probabilities and class numbers [B,count] of the likeliest classes, best first; at most all of them."""
        check_whole(count, "count")
        return self(images).float().softmax(-1).topk(min(count, self.config.classes))
