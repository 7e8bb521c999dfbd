"""A frozen language model whose sequences begin from a learned state rather than from zeros: state tuning.

What is trained is one tensor [1,H,K,V] a layer (and the few inputs of the short convolution, where there is one):
L·D·n numbers, which act like a text that was read before every text. Only a model whose whole memory is a state of
constant size can be given its past as parameters.

A saved text in progress (generate/snapshots.py) is a state and one token that the state has not read yet. To be such a
value, a learned state stands before an *opening* token, which every sequence reads first: S_0 is learned, and
sequences begin from what the model makes of S_0 and the opening. So training, measuring and generating from the file
are the same computation.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.layers.state import LayerState, ModelState
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.settings import refuse


class StateTuned(LanguageModel):
    """`base` with learned initial states; `parameters()` and `state_dict()` have these states only.

    Example:
        >>> import hgrn2
        >>> from hgrn2.models.tuned import StateTuned
        >>> config = hgrn2.ModelConfig(vocab_size=65, width=32, layers=2, glu_width=64,
        ...                            mixer=hgrn2.MixerConfig(head_size=16))
        >>> tuned = StateTuned(hgrn2.LanguageModel(config), opening=0)
        >>> sum(p.numel() for p in tuned.parameters())
        1024
    """

    kind = "state"  # of its checkpoints, which are no models by themselves

    def __init__(self, base: LanguageModel, opening: int) -> None:
        """Takes the base's dtype and device, freezes it and puts it into evaluation mode; the states begin at zero.

        Args:
            base: the model to adapt; shared, not copied.
            opening: id of the token that every sequence reads first, usually the end-of-document mark.
        """
        nn.Module.__init__(self)
        base.check_tokens(torch.tensor([opening]))
        self.config, self.opening = base.config, opening
        check_tunable(base.config)
        self._base = (base.requires_grad_(False).eval(),)  # in a tuple: no submodule, so not saved and not trained
        start = base.zeros(1)
        # Complex states (HGRN1) are kept as pairs of real numbers, which optimisers and files know.
        self.recurrent = nn.ParameterList(nn.Parameter(_real(layer.recurrent)) for layer in start.layers)
        self.conv = nn.ParameterList(nn.Parameter(layer.conv) for layer in start.layers if layer.conv is not None)
        self._like = start

    def __getattr__(self, name: str) -> Any:
        """What is not here is the base's: embedding, backbone, head and scale."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_base"][0], name)

    @property
    def learned(self) -> ModelState:
        """S_0, the state of one sequence before its opening token; gradients reach the parameters."""
        taps, layers = iter(self.conv), []
        for like, real in zip(self._like.layers, self.recurrent, strict=True):
            state = torch.view_as_complex(real) if like.recurrent.is_complex() else real
            layers.append(LayerState(state, None if like.conv is None else next(taps)))
        return ModelState(tuple(layers))

    def set_learned(self, state: ModelState) -> None:
        """Put the values of a state of one sequence in place of the learned ones."""
        with torch.no_grad():
            for mine, theirs in zip(self.learned.layers, state.layers, strict=True):
                mine.overwrite(theirs)

    def zeros(self, batch: int, dtype: torch.dtype | None = None) -> ModelState:
        """The state of `batch` sequences before their first token: the learned one after its opening token."""
        opening = torch.full((1, 1), self.opening, device=self.recurrent[0].device)
        _, start = super().hidden(opening, self.learned)
        assert start is not None  # asked for, as `output_state` is by default
        start = start.map(lambda x: x.expand(batch, *x.shape[1:]).contiguous())
        return start if dtype is None else start.map(lambda x: x if x.is_complex() else x.to(dtype))

    def hidden(
        self, tokens: Tensor, state: ModelState | None = None, *, cu_seqlens: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, ModelState | None]:
        """As of a language model; without a state, each sequence or packed document begins from the learned one."""
        if state is None:
            state = self.zeros(tokens.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1)
        return super().hidden(tokens, state, cu_seqlens=cu_seqlens, **options)


def check_tunable(config: ModelConfig) -> None:
    """Refuse models whose state is not of a fixed size."""
    named = config.named_kinds
    refuse(config.grows, f"a state of {named} is the text itself and has no fixed size: it cannot be tuned")


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor).clone() if tensor.is_complex() else tensor.clone()
