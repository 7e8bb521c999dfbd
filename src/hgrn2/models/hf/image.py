"""Image classifiers for transformers: arguments and results of theirs around our `VisionClassifier`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import ImageClassifierOutput

from hgrn2.errors import UserError
from hgrn2.models.hf.image_configuration import HGRN1VisionConfig, HGRN2VisionConfig
from hgrn2.models.hf.modeling import HGRN2PreTrainedModel, start
from hgrn2.models.plain import check_plain
from hgrn2.models.sequence import cross_entropy
from hgrn2.models.vision import VisionClassifier


class HGRN2ForImageClassification(HGRN2PreTrainedModel):
    """Images to classes, for `Trainer`, `pipeline` and what builds on them.

    Example:
        >>> import torch, hgrn2
        >>> config = hgrn2.HGRN2VisionConfig(
        ...     num_labels=10, image_size=32, patch=4, width=32, layers=2, mixer={"head_size": 8}
        ... )
        >>> model = hgrn2.HGRN2ForImageClassification(config).eval()
        >>> tuple(model(torch.zeros(1, 3, 32, 32)).logits.shape)
        (1, 10)
    """

    config_class = HGRN2VisionConfig
    base_model_prefix = ""  # there is no model without the head
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (the library's name and type)
    accepts_loss_kwargs = False  # the loss is a mean over the batch, and Trainer divides by accumulated steps

    def __init__(self, config: HGRN2VisionConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision = VisionClassifier(config.to_vision_config())
        if self.vision.head.proj.weight.device.type != "meta":
            self.vision._is_hf_initialized = True  # pyright: ignore[reportArgumentType]  (done just now)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, VisionClassifier):
            start(module, self.config.to_vision_config().init)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Logits [B,classes], and with labels the mean cross-entropy in nats, in float32; with a problem_type of the
        configuration other than single_label_classification, or a `loss_function` of one's own, that loss.

        Args:
            pixel_values: [B,C,height,width] of any size that divides into patches, normalised as the model was trained;
                for models of ours from -1 to 1 (preprocessor_config.json says so).
            labels: [B] of class numbers, or mixed ones [B,classes].
            output_hidden_states: also the input of each block and the final features, [B,h·w,D] each.

        Raises:
            UserError: no images, another number of channels, sides that are no multiples of the patch, integers.
        """
        if pixel_values is None:
            raise UserError("give pixel_values, [B,C,height,width]")
        wanted = output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        trace: list[Tensor] | None = [] if wanted else None
        backbone = self.vision.backbone
        recompute = self.gradient_checkpointing and self.training
        if recompute != backbone.recompute_blocks:
            backbone.set_recompute("block" if recompute else "none")
        logits = self.vision.head(self.vision.hidden(pixel_values, trace=trace))
        found = ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),  # pyright: ignore[reportArgumentType]
            logits=logits,
            hidden_states=None if trace is None else tuple(trace),  # pyright: ignore[reportArgumentType]
        )
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return found if as_dict else found.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        usual = self.config.problem_type in (None, "single_label_classification")
        if usual and self.loss_function is ForSequenceClassificationLoss:
            return cross_entropy(logits, labels.to(logits.device))
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)

    def to_vision_classifier(self) -> VisionClassifier:
        """Our own `VisionClassifier` with these very weights (shared memory), in evaluation mode.

        Raises:
            UserError: adapters in place (merge them first), quantised or offloaded weights.
        """
        with torch.device("meta"):
            made = VisionClassifier(self.config.to_vision_config())
        tensors = self.vision.state_dict()
        check_plain(tensors, made.state_dict(), "to_vision_classifier")
        made.load_state_dict(tensors, assign=True)
        return made.eval()


class HGRN1ForImageClassification(HGRN2ForImageClassification):
    """HGRN1, real or complex, for images."""

    config_class = HGRN1VisionConfig


def from_vision_classifier(model: VisionClassifier, **more: Any) -> HGRN2ForImageClassification:
    """An image classifier of ours as transformers' class, with the same weights (shared memory), in evaluation mode.

    Args:
        model: as `hgrn2.models.saved.load_classifier` gives it.
        more: fields of the configuration, as in `id2label={0: "cat", 1: "dog"}`.
    """
    config = HGRN2VisionConfig.from_vision_config(model.config, **more)
    kind = HGRN1ForImageClassification if isinstance(config, HGRN1VisionConfig) else HGRN2ForImageClassification
    with torch.device("meta"):
        made = kind(config)
    made.vision.load_state_dict(model.state_dict(), assign=True)
    return made.eval()
