"""States side by side in one place, each of a text that is being written; a step reads one token of all of them.

A step computes in the least of a few widths that holds the texts in use, which are always the first rows. On a CPU a
width is used only if it was seen to give every row the same bits as the widest one does, wherever the row stands: what
a text becomes then depends on nobody else. (Matrix products of very few rows sum in another order and are left out.)
On a GPU each width is one captured graph.

Keys and values of attention are held text by text (`KeyValueRows`): they take memory as the text grows, and what comes
of a text depends on no other either. Steps of such models are not captured.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hgrn2.generate.config import GraphUse
from hgrn2.generate.steps import captured, choose_graph
from hgrn2.layers.key_value_rows import KeyValueRows, apart, no_rows, own
from hgrn2.layers.key_values import KeyValues
from hgrn2.layers.state import LayerState, ModelState
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.serve.gates import memory_lengths

GPU_WIDTHS = (1, 4, 16, 64, 256, 1024, 4096)
TRIED = 8  # tokens read before widths are compared, so that states are not all zero


class Slots:
    """Up to S texts; those in use are rows 0 to `used` - 1."""

    def __init__(self, model: LanguageModel, size: int, *, vocabulary: int, graph: GraphUse = "auto") -> None:
        """Allocate S = `size` states (rounded up to a power of two on a CPU); keys and values are not set aside."""
        self.model, self.vocabulary, self.used = model, vocabulary, 0
        self.size = size
        rows = 1 << (size - 1).bit_length()
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=model.device)
        self.grows = model.config.grows
        self.state = _pool(model.zeros(rows))
        self.exact = model.device.type == "cpu"
        """Whether a text is bit for bit the same alone and beside others."""
        if self.exact:
            self.widths, self.exact = agreeing_widths(model, rows)
        else:
            self.widths = (*(w for w in GPU_WIDTHS if w < rows), rows)
        self._views = {} if self.grows else {width: self._rows(0, width) for width in self.widths}
        graphed = choose_graph(model.device, graph, grows=self.grows)[0]
        self._steps = {width: self._step_of(width, graphed) for width in self.widths}
        self.clear()

    def clear(self) -> None:
        """Every slot is free and empty."""
        self.used = 0
        with torch.inference_mode():
            self.tokens.zero_()
            if self.grows:
                self.state = _pool(self.model.zeros(len(self.tokens)))
            else:
                self.state.map(Tensor.zero_)

    def enter(self, state: ModelState, last: int) -> int:
        """Copy the state of one text, which has not read its token `last` yet, into a free slot; which one."""
        assert self.used < self.size
        row = self.used
        with torch.inference_mode():
            self._put(row, state)
            self.tokens[row] = last
        self.used += 1
        return row

    def leave(self, row: int) -> None:
        """Free a slot; the text of the last row in use is moved there."""
        self.used -= 1
        with torch.inference_mode():
            if row != self.used:
                self._put(row, self._rows(self.used))
                self.tokens[row] = self.tokens[self.used]
            self._put(self.used, None)
            self.tokens[self.used] = 0

    def step(self) -> Tensor:
        """Read the token of every text in use -> logits [used,V] of what comes next; call `feed` with the choice."""
        width = next(width for width in self.widths if width >= self.used)
        with reading(self.model):
            return self._steps[width]()[: self.used]

    def step_with_gates(self) -> tuple[Tensor, list[Tensor | None]]:
        """The same step, call by call, and the memory lengths of each layer at these tokens (`gates`)."""
        width = next(width for width in self.widths if width >= self.used)
        entered: list[Tensor] = []
        with reading(self.model):
            before = [layer.conv for layer in self._rows(0, width).layers]
            convolved = [None if conv is None else conv.clone() for conv in before]  # the step writes over them
            logits = self._call(width, entered)[: self.used]
            return logits, memory_lengths(self.model, entered, convolved)

    def feed(self, chosen: list[int]) -> None:
        """The tokens that the next step reads, one for each text in use."""
        with torch.inference_mode():
            self.tokens[: self.used, 0] = torch.tensor(chosen)

    def snapshot(self, row: int) -> ModelState:
        """A copy of the state of one text, on the CPU."""
        with torch.inference_mode(False):
            return self.state.select([row]).to("cpu")

    def _rows(self, first: int, count: int = 1) -> ModelState:
        """Some of the slots, in the same memory."""

        def part(layer: LayerState | KeyValueRows) -> LayerState | KeyValueRows:
            if isinstance(layer, KeyValueRows):
                return layer.part(first, count)
            return layer.map(lambda x: x[first : first + count])

        return ModelState(tuple(map(part, self.state.layers)))

    def _put(self, row: int, state: ModelState | None) -> None:
        """Copy a state of one text into a slot, that of another slot included; None: nothing stands there any more."""
        layers = list(self.state.layers)
        for n, mine in enumerate(layers):
            its = None if state is None else state.layers[n]
            if isinstance(mine, KeyValueRows):
                kept = its.rows[0] if isinstance(its, KeyValueRows) else its and own(its)
                layers[n] = mine.replaced(row, (kept,))
                if mine.conv is not None:
                    mine.conv[row : row + 1] = its.conv if its is not None and its.conv is not None else 0
            elif its is None:
                self._row(mine, row).map(Tensor.zero_)
            else:
                self._row(mine, row).overwrite(its)
        self.state = ModelState(tuple(layers)) if self.grows else self.state

    @staticmethod
    def _row(layer: LayerState, row: int) -> LayerState:
        return layer.map(lambda x: x[row : row + 1])

    def _grown(self, state: ModelState | None) -> None:
        """Take keys and values that a step has added to; everything else was written in place."""
        assert state is not None
        layers = list(self.state.layers)
        for n, (mine, new) in enumerate(zip(layers, state.layers, strict=True)):
            if isinstance(mine, KeyValueRows):
                layers[n] = mine.replaced(0, new.rows)
                if mine.conv is not None:
                    mine.conv[: new.batch] = new.conv
        self.state = ModelState(tuple(layers))

    def _call(self, width: int, trace: list[Tensor] | None = None) -> Tensor:
        state = self._rows(0, width) if self.grows else self._views[width]
        features, made = self.model.hidden(self.tokens[:width], state, inplace=True, trace=trace)
        if self.grows:
            self._grown(made)
        logits = self.model.logits(features[:, 0])[:, : self.vocabulary]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _step_of(self, width: int, graph: bool) -> Callable[[], Tensor]:
        """The step of a width: what it returns is valid until the next call."""
        if not graph:
            return lambda: self._call(width)
        out: list[Tensor] = []

        def call() -> None:
            out[:] = [self._call(width)]

        recorded = captured(call, self.model, self.tokens.device)

        def replayed() -> Tensor:
            recorded.replay()
            return out[0]

        return replayed


def agreeing_widths(model: LanguageModel, rows: int) -> tuple[tuple[int, ...], bool]:
    """Widths up to `rows` in which every row of a step comes out with the same bits, and whether `rows` itself does.

    Rows are compared in another order than that of the widest step, so that a row may not depend on its place either.
    """
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (rows, TRIED + 1), generator=random)
    order = torch.randperm(rows, generator=random)
    with reading(model):
        _, begun = model.hidden(tokens[:, :TRIED], model.zeros(rows))
        assert begun is not None  # asked for, as `output_state` is by default

        def step(chosen: Tensor) -> list[Tensor]:
            parted = ModelState(tuple(_apart(layer) for layer in begun.select(chosen).layers))
            features, state = model.hidden(tokens[chosen, TRIED:], parted, inplace=True)
            assert state is not None
            return [model.logits(features[:, 0]), *state.tensors().values()]

        wanted = step(torch.arange(rows))

        def agrees(width: int) -> bool:
            chosen = order[:width]
            return all(torch.equal(mine, its[chosen]) for mine, its in zip(step(chosen), wanted, strict=True))

        widths = [width for width in (1 << n for n in range(rows.bit_length() - 1)) if agrees(width)]
        exact = agrees(rows)
    return (*(widths if exact else []), rows), exact


def _pool(state: ModelState) -> ModelState:
    """Free slots: zeros, and no text that has keys and values."""
    return ModelState(tuple(no_rows(layer) if isinstance(layer, KeyValues) else layer for layer in state.layers))


def _apart(layer: LayerState | KeyValues) -> LayerState | KeyValueRows:
    return apart(layer) if isinstance(layer, KeyValues) else layer
