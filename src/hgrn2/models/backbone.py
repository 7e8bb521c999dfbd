"""The stack of blocks with its lower bounds: the only loop over layers, for training, prefill and one-token steps."""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.block import Block, recomputed
from hgrn2.layers.directions import Shape, check_shape, no_state
from hgrn2.layers.gates import lower_bounds
from hgrn2.layers.key_value_rows import KeyValueRows
from hgrn2.layers.key_values import KeyValues
from hgrn2.layers.masking import accepts_keep, check_padding_mask
from hgrn2.layers.norm import Norm
from hgrn2.layers.state import ModelState
from hgrn2.models.config import Recompute, StackConfig
from hgrn2.models.plain import device_of, dtype_of
from hgrn2.ops.arguments import check_tensors, check_whole
from hgrn2.settings import refuse


class Backbone(nn.Module):
    """L pre-norm blocks and a final norm; embeddings and heads belong to the models around it."""

    def __init__(self, config: StackConfig, *, final_norm: bool = True) -> None:
        super().__init__()
        self.config = config
        self.with_lower_bound = config.with_lower_bound if config.lower_bound != "none" else ()
        # The first lower bound is zero by definition: with one such layer there is nothing to learn, though the tensor
        # stays where checkpoints and other implementations have it.
        raw = nn.Parameter(
            torch.empty(len(self.with_lower_bound), config.width), requires_grad=len(self.with_lower_bound) > 1
        )
        self.lower_bounds = raw if self.with_lower_bound else None
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                mixer,
                glu_width=config.glu_width,
                glu_activation=config.glu_activation,
                glu_bias=config.glu_bias,
                norm=config.norm,
                norm_eps=config.norm_eps,
                dropout=config.dropout,
                drop_path=config.drop_path_of(layer),
            )
            for layer, mixer in enumerate(config.mixers)
        )
        self.norm = Norm(config.norm, config.width, config.norm_eps) if final_norm else None
        self.mixers = config.mixers
        self.shaped = next((mixer for mixer in config.kinds.values() if mixer.is_2d), config.mixer)
        self.recompute_blocks = False

    def layer_lower_bounds(self) -> list[Tensor | None]:
        """γ of every layer, [D] float32; None where it is zero by definition (the first of those that have lower
        bounds) or there is none."""
        found: list[Tensor | None] = [None] * self.config.layers
        if self.lower_bounds is not None:
            rows = lower_bounds(self.lower_bounds, self.config.lower_bound)
            for layer, lower_bound in zip(self.with_lower_bound[1:], rows[1:].unbind(0), strict=True):
                found[layer] = lower_bound
        return found

    def set_recompute(self, what: Recompute) -> None:
        """Which activations a training step keeps: all of them (none), all but those of the GLUs (glu), or only the
        input of each block (block). What is not kept is computed again in the backward, with the same results."""
        known = get_args(Recompute)
        refuse(what not in known, f"recompute {what!r} is unknown; choose one of {', '.join(known)}")
        running = self.config.norm == "batch" and what != "none"
        refuse(running, f"recompute {what} would count every batch twice in the running statistics of norm batch")
        self.recompute_blocks = what == "block"
        for block in self.blocks:
            block.recompute_glu = what == "glu"  # pyright: ignore[reportArgumentType]

    def zeros(self, batch: int, dtype: torch.dtype | None = None) -> ModelState:
        """The state of `batch` sequences before their first token: float32 (float64 for a float64 model), keys and
        values of attention in the model's dtype, unless a dtype is given; each layer's where that layer computes."""
        refuse(self.config.mixer.direction != "causal", no_state(self.config.mixer))
        check_whole(batch, "batch", 0)
        floating = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
        refuse(not floating, f"a state's dtype must be a floating-point torch.dtype, not {dtype!r}")
        mixers: list[Any] = [block.mixer for block in self.blocks if isinstance(block, Block)]
        own = dtype_of(self)
        made = [mixer.zeros(batch, device_of(mixer), dtype or mixer.state_dtype(own)) for mixer in mixers]
        return ModelState(tuple(made))

    @accepts_keep
    def forward(
        self,
        x: Tensor,
        state: ModelState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        shape: Shape | None = None,
        output_state: bool = True,
        inplace: bool = False,
        trace: list[Tensor] | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """x [B,T,D] -> (norm of the last block's output [B,T,D], state of every block).

        Args:
            padding_mask: [B,T] bool; False marks padding: it leaves every state exactly alone, and its output means
                nothing.
            shape: (height, width) of the images whose pixels or patches the tokens are, row by row; for mixers of a
                2-D direction, and refused for others.
            output_state: directions other than causal have no state, and need False.
            inplace: the new state may overwrite the given one, in its dtype: go on with the one returned.
            trace: a list that receives what each block is given and the result, L + 1 tensors.

        Raises:
            UserError: a mask that is not [B,T] bool, a shape that does not fit, a state where there is none.
        """
        self._check(x, state)
        check_padding_mask(padding_mask, x)
        check_shape(self.shaped, x.shape[1], shape)
        state = state if state is None or inplace else state.usable()
        finals = []
        recompute = self.recompute_blocks and torch.is_grad_enabled()
        for n, (block, lower_bound) in enumerate(zip(self.blocks, self.layer_lower_bounds(), strict=True)):
            start = None if state is None else state.layers[n]
            options = {"cu_seqlens": cu_seqlens, "padding_mask": padding_mask, "shape": shape}
            options |= {"output_state": output_state, "inplace": inplace}
            if trace is not None:
                trace.append(x)
            if recompute:
                draws = self.config.dropout > 0 or self.config.drop_path > 0
                x, final = recomputed(block, x, lower_bound, start, random=draws, **options)
            else:
                x, final = block(x, lower_bound, start, **options)
            finals.append(final)
        x = x if self.norm is None else self.norm(x, padding_mask)
        if trace is not None:
            trace.append(x)
        return x, ModelState(tuple(finals)) if output_state else None

    def _check(self, x: Tensor, state: ModelState | None) -> None:
        check_tensors(x=x)
        if x.dim() != 3 or x.shape[2] != self.config.width or not x.is_floating_point():
            found = f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
            raise UserError(f"x must be [B,T,{self.config.width}] floating-point; got {found}")
        if state is None:
            return
        kind = type(state)
        refuse(not isinstance(state, ModelState), f"a state is a ModelState, as zeros() makes it, not {kind.__name__}")
        mine, its = self.config.layers, len(state.layers)
        refuse(mine != its, f"the state is of {its} layers, the model has {mine}: it belongs to another model")
        for n, (mixer, layer) in enumerate(zip(self.mixers, state.layers, strict=True)):
            grows = isinstance(layer, KeyValues | KeyValueRows)
            if grows != mixer.grows or (grows and layer.window != mixer.window):
                raise UserError(f"the state of layer {n} is not one of {mixer.kind}: it belongs to another model")
