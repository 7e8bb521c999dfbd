"""One-token steps over buffers that stay where they are, so that a GPU can replay them as one graph.

    tokens [R,1] → embedding → blocks (states updated in place) → norm → head → choice → tokens [R,1]

Everything between two tokens happens on the device; the host reads the chosen ids, and sends random numbers where
tokens are drawn. On a CUDA device the whole step is captured once and replayed: the processor then no longer starts
hundreds of small kernels per token. Elsewhere the same code runs call by call.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.generate import sampling
from hgrn2.generate.config import GraphUse, SamplingConfig
from hgrn2.generate.whole_step import whole_step
from hgrn2.layers.state import ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.settings import refuse

WARM_UP = 3  # steps before the capture: kernels are compiled and workspaces made, which a graph cannot record
GROWS = "its state grows with every token, and a graph needs tensors that stay where they are"
WORTHWHILE = 16  # tokens from which on a capture, which costs some steps itself, pays


def choose_graph(
    device: torch.device, use: GraphUse, tokens: int = WORTHWHILE, *, grows: bool = False
) -> tuple[bool, str]:
    """Whether steps are captured as a CUDA graph, and why: "on" where it cannot be is a `UserError`."""
    why = ""
    if grows:
        why = GROWS
    elif device.type != "cuda":
        why = f"CUDA graphs need a CUDA device, the model is on {device.type}"
    elif use == "off":
        why = "turned off"
    elif use == "auto" and tokens < WORTHWHILE:
        why = f"a capture pays from {WORTHWHILE} tokens on"
    if why and use == "on":
        raise UserError(f"graph=on: {why}")
    return not why, why or "the step is captured once and replayed"


class Steps:
    """Steps of R sequences side by side; `load` puts them in, `choose` reads every last token and picks the next."""

    def __init__(
        self,
        model: LanguageModel,
        rows: int,
        config: SamplingConfig,
        *,
        vocabulary: int | None = None,
        state_dtype: torch.dtype | None = None,
        graph: bool = False,
        compile: bool = False,
    ) -> None:
        """Allocate the buffers, and capture the step if asked to; weights must stay in place from here on.

        Args:
            model: used in evaluation mode, which it need not be in.
            rows: R, fixed for a captured step.
            config: how tokens are chosen; its seed is not used, random numbers come with `choose`.
            vocabulary: ids from here on are never chosen; None: all of the model's may be.
            state_dtype: of the states of hgru2; None is float32 (float64 for a float64 model).
            graph: capture a CUDA graph; see `choose_graph`.
            compile: let torch.compile fuse what stands between the matrix products.
        """
        device = model.device
        self.model, self.config, self.captured = model, config, graph
        self.vocabulary = vocabulary or model.config.vocab_size
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.chosen = torch.zeros(rows, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(rows, dtype=torch.float64, device=device)
        self.seen: Tensor | None = None
        if config.repetition_penalty != 1:
            self.seen = torch.zeros(rows, self.vocabulary, dtype=torch.bool, device=device)
        self.state = model.zeros(rows, state_dtype)
        self.grows = model.config.grows
        refuse(
            graph and self.grows, f"a step of {model.config.named_kinds} cannot be captured as a CUDA graph: {GROWS}"
        )
        self._sent = torch.zeros(rows, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._whole, self.how = None, "call by call"
        if rows == 1 and device.type == "cpu" and not compile:
            self._whole, self.how = whole_step(model, self.state)
        self._call = torch.compile(self._step, fullgraph=True, dynamic=False) if compile else self._step
        self._graph = captured(self._call, model, device) if graph else None

    @property
    def rows(self) -> int:
        """R."""
        return self.tokens.shape[0]

    def load(self, state: ModelState, last: Tensor | int, seen: Tensor | None = None) -> None:
        """Start from `state`, of R sequences or of one that all rows go on from, which has not read `last` yet.

        Args:
            state: copied, so it stays as it is.
            last: the last token of each row [R,1], or of all.
            seen: ids that occurred already [R,V] or [V], for the repetition penalty.
        """
        with torch.inference_mode():
            self.tokens.copy_(torch.as_tensor(last))
            if self.seen is not None:
                self.seen.copy_(torch.zeros_like(self.seen) if seen is None else seen)
            self.state = self.state.overwrite(state)  # one sequence is repeated

    def choose(self, generators: Sequence[torch.Generator] = ()) -> list[int]:
        """One step: the next token of every row. `generators`, one per row, are needed unless greedy.

        Raises:
            UserError: where the model's output is not a finite number.
        """
        with reading(self.model):
            if not self.config.greedy:
                self._sent.copy_(sampling.uniforms(generators))
                self.uniforms.copy_(self._sent, non_blocking=True)
            self.run()
            chosen = self.chosen.tolist()  # the one point where the host waits for the device
        if min(chosen) < 0:
            raise UserError(sampling.NOT_FINITE)
        return chosen

    def run(self) -> None:
        """The step alone, on the device, to be called inside `reading(model)`: nothing is waited for or checked. The
        ids are in `chosen`, and in `tokens` for the next step."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._call()

    def snapshot(self, row: int) -> ModelState:
        """A copy of the state of one row, in the dtype that saved states have."""
        like = self.model.zeros(1)
        with torch.inference_mode(False):  # whoever gets it may train from it
            return like.overwrite(self.state.select([row]))

    def keep(self, rows: list[int]) -> list[int]:
        """Let the other rows go; returns where the kept ones are now. A captured step goes on computing all of them."""
        if self.captured:
            return rows
        if rows == list(range(self.rows)):  # tensors stay where they are
            return rows
        with torch.inference_mode():
            self._whole = None
            self.state = self.state.select(rows)
            self.tokens, self.chosen, self.uniforms, self._sent = (
                x[rows] for x in (self.tokens, self.chosen, self.uniforms, self._sent)
            )
            self.seen = None if self.seen is None else self.seen[rows]
        return list(range(len(rows)))

    def _logits(self) -> Tensor:
        """Of the next token [R,V], the states being updated."""
        if self._whole is not None:
            return self._whole(int(self.tokens))
        features, state = self.model.hidden(self.tokens, self.state, inplace=True)
        if self.grows:
            assert state is not None  # asked for, as `output_state` is by default
            self.state = state
        return self.model.logits(features[:, 0])

    def _step(self) -> None:
        logits = self._logits()[:, : self.vocabulary]
        self.chosen.copy_(sampling.pick(logits, self.config, self.uniforms, self.seen))
        self.tokens.copy_(self.chosen.clamp_min(0).unsqueeze(1))  # -1 tells the host of damage; no embedding has it
        if self.seen is not None:
            self.seen.scatter_(1, self.tokens, True)


def captured(call: Callable[[], None], model: LanguageModel, device: torch.device) -> torch.cuda.CUDAGraph:
    """Record what `call` starts on the device. It runs a few times before; what that leaves in buffers is to be
    overwritten."""
    with reading(model), torch.cuda.device(device):
        aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                call()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
    return graph
