"""Text from a model: the prompt is read in segments, then one token a step; memory does not grow with either.

generator = Generator(model, tokenizer)
for piece in generator.stream("To be, ", GenerationConfig(max_tokens=50)):
    print(piece.text, end="", flush=True)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.generate.config import GenerationConfig
from hgrn2.generate.snapshots import Snapshot
from hgrn2.generate.steps import Steps, choose_graph
from hgrn2.generate.text import CONTEXT, Finished, TextStream, Writing
from hgrn2.generate.whole_step import whole_step
from hgrn2.layers.state import ModelState
from hgrn2.memory import refuse_too_big
from hgrn2.models.count import state_bytes
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse


@dataclass(frozen=True)
class Piece:
    """One step of one sample."""

    sample: int
    """Which of the samples, from 0."""
    token: int | None
    """The new token; None where only the prompt was read (max_tokens 0)."""
    text: str
    """The text that is certain now: whole characters, no part of a stop text; often none, sometimes several tokens'.
    A character that has only begun when max_tokens are reached is not shown; its snapshot goes on with it."""
    finished: Finished | None = None
    """Why the sample ends with this piece: a stop text, the end of document, max_tokens; None while it goes on."""
    snapshot: Snapshot | None = None
    """On the last piece of a sample, where its text stands. It includes all tokens of a stop text."""


@dataclass(frozen=True)
class Completion:
    """A whole sample."""

    sample: int
    text: str
    ids: tuple[int, ...]
    """All new tokens, those of a stop text or the end of document included."""
    finished: Finished
    snapshot: Snapshot


@dataclass
class _Row:
    """A sample while it grows."""

    sample: int
    writing: Writing
    random: torch.Generator


@dataclass
class _Batch:
    """The samples that still grow: `rows[n]` lies in row `places[n]` of the steps."""

    steps: Steps
    rows: list[_Row]
    places: list[int]
    idle: torch.Generator = field(default_factory=torch.Generator)
    """Draws for rows of a captured step whose samples have ended."""

    def choose(self) -> list[int]:
        """The next token of every sample."""
        generators = [self.idle] * self.steps.rows
        for place, row in zip(self.places, self.rows, strict=True):
            generators[place] = row.random
        chosen = self.steps.choose(generators)
        return [chosen[place] for place in self.places]

    def keep(self, going: list[int]) -> None:
        """Go on with these samples only."""
        self.rows = [self.rows[n] for n in going]
        self.places = self.steps.keep([self.places[n] for n in going])


class Generator:
    """Continues texts with a language model and the tokenizer that its training text had."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        name = type(model).__name__
        refuse(not isinstance(model, LanguageModel), f"the model must be a LanguageModel, not {name}")
        size, known = tokenizer.vocab_size, model.config.vocab_size
        refuse(size > known, f"the tokenizer has {size} ids, the model knows {known}: they do not belong together")
        self.model = model
        self.tokenizer = tokenizer

    def stream(
        self,
        prompt: str | Sequence[int] | np.ndarray,
        config: GenerationConfig | None = None,
        state: Snapshot | None = None,
        *,
        progress: Progress = silent,
    ) -> Iterator[Piece]:
        """Continue a text piece by piece; the last piece of each sample carries its snapshot.

        Args:
            prompt: text, or token ids. It may be empty after a snapshot, or where the tokenizer has an end of document,
                after which a new one begins.
            config: what to generate.
            state: a snapshot to go on from; the prompt comes after its text. The seed and the repetition penalty start
                afresh: a snapshot holds no random numbers and no list of tokens.
            progress: told "reading the prompt", its tokens read, all of them.

        Raises:
            UserError: at once, for an empty prompt with nothing to continue, text or ids outside the vocabulary; while
                generating, for logits that are not finite.
        """
        config = GenerationConfig() if config is None else config
        for value, wanted in ((config, GenerationConfig), (state, Snapshot)):
            fits = value is None or isinstance(value, wanted)
            refuse(not fits, f"expected a {wanted.__name__}, not {type(value).__name__}")
        self._check_size(config)
        self._graph(config)
        ids = self.prompt_ids(prompt, state)
        tokens = len(ids) if state is None else state.tokens + len(ids) - 1
        return self._run(ids, tokens, config, state, progress)

    def _check_size(self, config: GenerationConfig) -> None:
        """Every sample has a state and logits of its own."""
        settings, device = self.model.config, next(self.model.parameters()).device
        each = state_bytes(settings, "bfloat16") // 2 + 4 * settings.vocab_size
        what = f"{config.samples:,} samples need"
        refuse_too_big(config.samples * each, what, "make samples smaller", device=device)

    def generate(
        self,
        prompt: str | Sequence[int] | np.ndarray,
        config: GenerationConfig | None = None,
        state: Snapshot | None = None,
    ) -> list[Completion]:
        """All samples of `stream`, whole, in order."""
        pieces: dict[int, list[Piece]] = {}
        for piece in self.stream(prompt, config, state):
            pieces.setdefault(piece.sample, []).append(piece)
        made = []
        for sample, parts in sorted(pieces.items()):
            text = "".join(part.text for part in parts)
            ids = tuple(part.token for part in parts if part.token is not None)
            end = parts[-1]
            assert end.finished is not None
            assert end.snapshot is not None
            made.append(Completion(sample, text, ids, end.finished, end.snapshot))
        return made

    def prompt_ids(self, prompt: str | Sequence[int] | np.ndarray, state: Snapshot | None = None) -> np.ndarray:
        """The ids that the model has to read, int64: the prompt's, after the one that a snapshot left unread.

        After a snapshot the prompt goes on with its text: nothing that begins a text is added, and both joined are
        what is read. Only after an end of document a new text begins.
        """
        continues = state is not None and state.last != self.tokenizer.eot
        ids = self.tokenizer.encode(prompt, continues=continues) if isinstance(prompt, str) else np.asarray(prompt)
        refuse(ids.ndim > 1, f"a prompt is one sequence of token ids, not {list(ids.shape)}")
        refuse(ids.size > 0 and ids.dtype.kind not in "iu", f"token ids must be whole numbers, not {ids.dtype}")
        ids = ids.reshape(-1).astype(np.int64)
        bad = ids[(ids < 0) | (ids >= self.tokenizer.vocab_size)]
        if bad.size:
            raise UserError(f"token id {bad[0]} is outside the vocabulary of {self.tokenizer.vocab_size}")
        if state is not None:
            return np.concatenate([[state.last], ids])
        if ids.size == 0 and self.tokenizer.eot is None:
            raise UserError("empty prompt: give at least one character, or a saved state to continue")
        return ids if ids.size else np.array([self.tokenizer.eot])

    def _run(
        self, ids: np.ndarray, tokens: int, config: GenerationConfig, start: Snapshot | None, progress: Progress
    ) -> Iterator[Piece]:
        state = self._read_prompt(ids, start, config.segment, progress)
        pending = start.pending if start is not None and len(ids) == 1 else b""
        if config.max_tokens == 0:
            for sample in range(config.samples):
                with torch.inference_mode(False):  # whoever gets it may train from it
                    own = state.map(torch.clone)
                yield Piece(sample, None, "", "length", Snapshot(own, int(ids[-1]), tokens, pending))
            return
        batch = self._begin(ids, state, config, pending)
        while batch.rows:
            chosen = batch.choose()
            going = []
            for n, (row, token) in enumerate(zip(batch.rows, chosen, strict=True)):
                text, finished = row.writing.take(token)
                if finished is None:
                    going.append(n)
                    yield Piece(row.sample, token, text)
                else:
                    here = batch.steps.snapshot(batch.places[n])
                    end = Snapshot(here, token, tokens + row.writing.count, row.writing.stream.pending)
                    yield Piece(row.sample, token, text, finished, end)
            if not going:
                return
            if len(going) < len(batch.rows):
                batch.keep(going)

    # What runs the model enters inference mode by itself: around a `yield` it would leak into the caller.

    def _read_prompt(self, ids: np.ndarray, start: Snapshot | None, segment: int, progress: Progress) -> ModelState:
        """The state after all ids but the last; it holds one sequence."""
        with reading(self.model):
            device = self.model.device
            state = self.model.zeros(1) if start is None else start.state.to(device)
            end = len(ids) - 1
            for first in range(0, end, segment):
                part = torch.from_numpy(ids[first : min(first + segment, end)]).to(device)
                _, state = self.model.hidden(part.unsqueeze(0), state)  # no logits: nothing is predicted here
                assert state is not None  # asked for, as `output_state` is by default
                progress("reading the prompt", min(first + segment, end) + 1, len(ids))
        return state

    def _begin(self, ids: np.ndarray, state: ModelState, config: GenerationConfig, pending: bytes) -> _Batch:
        seed = config.sampling.seed
        seed = torch.Generator().seed() % 2**62 if seed is None else seed
        eot = self.tokenizer.eot if config.stop_at_eot else None

        def row(sample: int) -> _Row:
            stream = TextStream(self.tokenizer, ids[-CONTEXT:].tolist(), pending)
            writing = Writing(stream, config.stop, eot=eot, max_tokens=config.max_tokens)
            return _Row(sample, writing, torch.Generator().manual_seed(seed + sample))

        rows = [row(sample) for sample in range(config.samples)]
        # A model's vocabulary may be padded: ids that the tokenizer does not have are never chosen.
        steps = Steps(
            self.model,
            config.samples,
            config.sampling,
            vocabulary=self.tokenizer.vocab_size,
            state_dtype=torch.bfloat16 if config.state_dtype == "bfloat16" and not self._is_double() else None,
            graph=self._graph(config)[0],
        )
        seen = torch.zeros(self.tokenizer.vocab_size, dtype=torch.bool)
        seen[torch.from_numpy(np.unique(ids))] = True
        steps.load(state, int(ids[-1]), seen)
        return _Batch(steps, rows, list(range(config.samples)))

    def decoding(self, config: GenerationConfig | None = None) -> str:
        """How the tokens of such a call are made, and why so, as a sentence."""
        config = config or GenerationConfig()
        captured, why = self._graph(config)
        if config.samples == 1 and config.state_dtype == "float32" and not captured:
            step, how = whole_step(self.model, self.model.zeros(1))
            if step is not None:
                return how
        return f"steps are {'replayed as a CUDA graph' if captured else 'run call by call'}: {why}"

    def _graph(self, config: GenerationConfig) -> tuple[bool, str]:
        device, grows = self.model.device, self.model.config.grows
        return choose_graph(device, config.graph, config.max_tokens, grows=grows)

    def _is_double(self) -> bool:
        return self.model.embedding.weight.dtype == torch.float64
