"""Recall as a task of the trainer: the loss is asked for at the queries only, and so are the answers."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.models.count import state_bytes
from hgrn2.models.gates import gate_statistics
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.report.write import LayerGates, layer_gates, write_report
from hgrn2.tasks.mqar.config import MQARRun, Segment
from hgrn2.tasks.mqar.data import Examples, Sequences
from hgrn2.train.task import Outcome, Task

TEST_TOKENS = 1 << 15
"""Tokens of one forward pass while measuring."""
GATE_SEQUENCES = 16
"""Of the longest test segment, over which gates are averaged."""


@dataclass(frozen=True)
class Recall:
    """What a model remembers of one test segment."""

    segment: Segment
    examples: int
    queries: int
    accuracy: float
    """Share of queries at which the right value has the largest logit, among all tokens of the vocabulary."""
    loss: float
    """Mean nats/query."""


class MQARTask(Task):
    """Batches, loss and measurements of recall."""

    def __init__(self, run: MQARRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.examples = Examples(run.data, run.model.vocab_size, run.train.batch_size)
        self.tokens_per_step = self.examples.mean_tokens
        self.data_identity = ""

    def model(self) -> LanguageModel:
        """A language model."""
        return LanguageModel(self.run.model).to(self.device)

    def batch(self, step: int, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B,T], positions of the queries [B,P] and their answers [B,P]."""
        found = self.examples.train(step, self.run.train.seed)
        rows = slice(part * len(found.tokens) // parts, (part + 1) * len(found.tokens) // parts)
        return self._tensors(Sequences(*(array[rows] for array in found)))

    def epochs(self, steps: int) -> float:
        """How often so many steps go through the training sequences."""
        return steps / len(self.examples.batches)

    def loss(self, model: LanguageModel, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean nats/query."""
        tokens, positions, answers = batch
        return nn.functional.cross_entropy(query_logits(model, tokens, positions).flatten(0, 1), answers.flatten())

    def evaluate(self, model: LanguageModel) -> dict[str, float | None]:
        """Mean nats/query over the beginning of every test segment, each counted alike."""
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

    def finish(self, model: LanguageModel, folder: Path) -> Outcome:
        """Accuracy on every test segment, and the gates."""
        return Outcome(
            held_out={one.segment.name: _values(one) for one in self.recall(model)},
            facts={"state_numbers": state_numbers(self.run)},
            report=partial(write_report, samples=[], gates=self._gates(model)),
        )

    def _gates(self, model: LanguageModel) -> list[LayerGates] | None:
        """Forget gates on the longest test segment; None for mixers without any."""
        segments = self.run.data.test_segments
        place = max(range(len(segments)), key=lambda n: segments[n].length)
        tokens = torch.from_numpy(self.examples.test(place).tokens[:GATE_SEQUENCES]).to(self.device)
        return layer_gates(gate_statistics(model, tokens))

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


def state_numbers(run: MQARRun) -> int:
    """Real numbers that the model carries behind the pairs of its longest training segment; attention carries more the
    longer the text is, the others always as many."""
    return state_bytes(run.model, tokens=run.train.sequence_length) // 4


def _values(found: Recall) -> dict[str, Any]:
    segment = found.segment
    return {
        "length": segment.length, "pairs": segment.pairs, "examples": found.examples, "queries": found.queries,
        "accuracy": found.accuracy, "loss": found.loss,
    }  # fmt: skip
