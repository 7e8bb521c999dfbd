"""What the records of a run add up to while it goes: latest and best values, how far it is, how long it will take."""

from typing import Any

_HISTORY = 240  # points kept of the curve; twice as many are halved


class RunProgress:
    """Latest and best values of a run that ends after `total_steps`, after `budget_s` seconds, or whichever is first.

    `take` costs a few microseconds and memory does not grow with the run.
    """

    def __init__(self, total_steps: int | None = None, budget_s: float | None = None) -> None:
        self.total_steps = total_steps
        self.budget_s = budget_s
        self.finished = False
        self.step = 0
        self.elapsed_s = 0.0
        self.tokens = 0
        self.loss: float | None = None
        """Training loss, the mean of the last `loss_steps` steps."""
        self.loss_steps = 1
        self.loss_is_finite = True
        self.lr: float | None = None
        self.grad_norm: float | None = None
        self.tokens_per_s: float | None = None
        self.mfu: float | None = None
        self.memory_bytes: int | None = None
        self.eval_loss: float | None = None
        self.eval_bits_per_byte: float | None = None
        self.eval_accuracy: float | None = None
        self.corpora: dict[str, float | None] = {}
        """Latest losses of further held-out texts."""
        self.best_loss: float | None = None
        self.best_step = 0
        self.last_event = ""
        self.history = History(_HISTORY)
        self.evaluations = History(_HISTORY)
        self._start: tuple[int, float] | None = None

    def take(self, record: dict[str, Any], recent: tuple[float, int] | None = None) -> None:
        """Take in one record of any kind (hgrn2.train.metrics); `recent` is (mean loss, of how many last steps), which
        says more than the loss of the record's one step."""
        self.step = max(self.step, record["step"])
        self.tokens = max(self.tokens, record.get("tokens", 0))
        if record["elapsed_s"] is not None:
            self.elapsed_s = max(self.elapsed_s, record["elapsed_s"])
        if record["kind"] == "step":
            self.lr, self.grad_norm = record["lr"], record["grad_norm"]
            self.mfu, self.memory_bytes = record.get("mfu"), record.get("memory_bytes")  # as below
            loss, steps = recent if recent is not None and record["loss"] is not None else (record["loss"], 1)
            self.take_step(loss, steps, record["tokens_per_s"])
        elif record["kind"] == "eval":
            self.eval_loss, self.eval_bits_per_byte = record["loss"], record["bits_per_byte"]
            self.eval_accuracy = record.get("accuracy")  # files of earlier versions have none
            self.corpora = record.get("corpora") or {}
            if self.eval_loss is not None and (self.best_loss is None or self.eval_loss < self.best_loss):
                self.best_loss, self.best_step = self.eval_loss, record["step"]
            if self.eval_loss is not None:
                self.evaluations.add(record["step"], self.eval_loss)
        else:
            self.last_event = record["text"]

    def take_step(self, loss: float | None, steps: int, tokens_per_s: float | None) -> None:
        """The training loss after the step at hand, a mean of the last `steps`; None stands for not finite."""
        if self._start is None:
            self._start = (self.step, self.elapsed_s)
        self.tokens_per_s, self.loss_steps = tokens_per_s, steps
        self.loss_is_finite = loss is not None
        if loss is not None:
            self.loss = loss
            self.history.add(self.step, loss)

    def fraction(self, elapsed_s: float | None = None) -> float:
        """How much of the run is done, 0 to 1; after so many seconds, or those of the last record."""
        elapsed_s = self.elapsed_s if elapsed_s is None else elapsed_s
        shares = [0.0]
        if self.total_steps:
            shares.append(self.step / self.total_steps)
        if self.budget_s:
            shares.append(elapsed_s / self.budget_s)
        return min(max(shares), 1.0)

    def seconds_left(self, elapsed_s: float | None = None) -> float | None:
        """Training seconds until the run ends at the pace of this session; None while that cannot be told."""
        elapsed_s = self.elapsed_s if elapsed_s is None else elapsed_s
        estimates = []
        if self.total_steps and self._start is not None and self.step > self._start[0]:
            pace = (self.elapsed_s - self._start[1]) / (self.step - self._start[0])
            estimates.append((self.total_steps - self.step) * pace - (elapsed_s - self.elapsed_s))
        if self.budget_s:
            estimates.append(self.budget_s - elapsed_s)
        return max(min(estimates), 0.0) if estimates else None


class History:
    """A whole curve in bounded memory: when full, neighbours are averaged and each point stands for twice as many."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.points: list[tuple[float, float]] = []
        self._every = 1
        self._waiting: list[tuple[float, float]] = []

    def add(self, x: float, y: float) -> None:
        """Append a point; the list stays below twice `size` points."""
        self._waiting.append((x, y))
        if len(self._waiting) < self._every:
            return
        points = [*self.points, _mean(self._waiting)]
        self._waiting = []
        if len(points) >= 2 * self.size:
            points = [_mean(list(pair)) for pair in zip(points[::2], points[1::2], strict=True)]
            self._every *= 2
        self.points = points  # a new list: one that draws it meanwhile, in another thread, has the old one


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
