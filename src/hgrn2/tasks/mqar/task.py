"""Recall as a task of the trainer: the loss is asked for at the queries only, and so are the answers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.tasks.mqar.config import MQARRun, Segment
from hgrn2.tasks.mqar.data import Examples, Sequences

TEST_TOKENS = 1 << 15
"""Tokens of one forward pass while measuring."""


@dataclass(frozen=True)
class Recall:
    """What a model remembers of one test segment."""

    segment: Segment
    examples: int
    queries: int
    accuracy: float
    """Share of queries at which the right value has the largest logit, among all tokens of the vocabulary."""
    loss: float
    """Mean nats a query."""


class MQARTask:
    """Batches, loss and measurements; see `hgrn2.train.task.Task`."""

    def __init__(self, run: MQARRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.examples = Examples(run.data, run.model.vocab_size, run.train.batch_size)
        self.tokens_per_step = self.examples.mean_tokens
        self.data_identity = ""

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B,T], positions of the queries [B,P] and their answers [B,P]."""
        found = self.examples.train(step, self.run.train.seed)
        rows = slice(part * len(found.tokens) // parts, (part + 1) * len(found.tokens) // parts)
        return self._tensors(Sequences(*(array[rows] for array in found)))

    def epochs(self, steps: int) -> float:
        """How often so many steps go through the training sequences."""
        return steps / len(self.examples.batches)

    def loss(self, model: LanguageModel, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean nats a query."""
        tokens, positions, answers = batch
        return nn.functional.cross_entropy(query_logits(model, tokens, positions).flatten(0, 1), answers.flatten())

    def evaluate(self, model: LanguageModel) -> dict[str, float | None]:
        """Mean nats a query over the beginning of every test segment, each counted alike."""
        found = self.recall(model, self.run.train.eval_tokens)
        return {"loss": sum(one.loss for one in found) / len(found), "bits_per_byte": None}

    def recall(self, model: LanguageModel, tokens: int | None = None) -> list[Recall]:
        """Accuracy and loss on every test segment; of each no more than the examples that fit into `tokens`."""
        found = []
        for place, segment in enumerate(self.run.data.test_segments):
            count = segment.examples if tokens is None else min(segment.examples, max(1, tokens // segment.length))
            test = Sequences(*(array[:count] for array in self.examples.test(place)))
            right, nats = self._read(model, test, max(1, TEST_TOKENS // segment.length))
            queries = count * segment.pairs
            found.append(Recall(segment, count, queries, right / queries, nats / queries))
        return found

    def save_assets(self, folder: Path) -> None:
        """Nothing: settings alone make the data."""

    def _read(self, model: LanguageModel, test: Sequences, rows: int) -> tuple[int, float]:
        """Right answers and summed nats."""
        right, nats = 0, 0.0
        with reading(model):
            for start in range(0, len(test.tokens), rows):
                some = Sequences(*(array[start : start + rows] for array in test))
                tokens, positions, answers = self._tensors(some)
                logits = query_logits(model, tokens, positions).flatten(0, 1)
                right += int((logits.argmax(-1) == answers.flatten()).sum())
                nats += float(nn.functional.cross_entropy(logits, answers.flatten(), reduction="sum"))
        return right, nats

    def _tensors(self, found: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        tensors = [torch.from_numpy(array) for array in found]
        if self.device.type == "cuda":  # a copy from pinned memory waits for nothing: the next batch is made meanwhile
            tensors = [tensor.pin_memory() for tensor in tensors]
        tokens, positions, answers = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        return tokens, positions, answers


def query_logits(model: LanguageModel, tokens: Tensor, positions: Tensor) -> Tensor:
    """Logits [B,P,V] in float32 at the positions [B,P] of tokens [B,T]; the head reads no other token."""
    features, _ = model.hidden(tokens, output_state=False)
    logits = model.logits(features.gather(1, positions.unsqueeze(-1).expand(-1, -1, features.shape[-1])))
    return logits if logits.dtype == torch.float64 else logits.float()
