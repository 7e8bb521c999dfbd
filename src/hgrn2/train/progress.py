"""What the records of a run add up to while it goes: latest and best values, how far it is, how long it will take."""

from typing import Any

_SMOOTHING = 0.95  # of the running mean of the training loss, per record
_HISTORY = 240  # points kept of the curve; twice as many are halved


class Progress:
    """Latest and best values of a run that ends after `total_steps`, after `budget_s` seconds, or whichever is first.

    `take` costs a few microseconds and memory does not grow with the run.
    """

    def __init__(self, total_steps: int | None = None, budget_s: float | None = None) -> None:
        self.total_steps = total_steps
        self.budget_s = budget_s
        self.finished = False
        self.step = 0
        self.elapsed_s = 0.0
        self.loss: float | None = None
        self.loss_is_finite = True
        self.lr: float | None = None
        self.grad_norm: float | None = None
        self.tokens_per_s: float | None = None
        self.eval_loss: float | None = None
        self.eval_bits_per_byte: float | None = None
        self.eval_accuracy: float | None = None
        self.best_loss: float | None = None
        self.best_step = 0
        self.last_event = ""
        self.history = History(_HISTORY)
        self._start: tuple[int, float] | None = None
        self._sum = self._weight = 0.0

    def take(self, record: dict[str, Any]) -> None:
        """Take in one record of any kind (hgrn2.train.metrics)."""
        self.step = max(self.step, record["step"])
        if record["elapsed_s"] is not None:
            self.elapsed_s = max(self.elapsed_s, record["elapsed_s"])
        if record["kind"] == "step":
            self._take_step(record)
        elif record["kind"] == "eval":
            self.eval_loss, self.eval_bits_per_byte = record["loss"], record["bits_per_byte"]
            self.eval_accuracy = record.get("accuracy")  # files of earlier versions have none
            if self.eval_loss is not None and (self.best_loss is None or self.eval_loss < self.best_loss):
                self.best_loss, self.best_step = self.eval_loss, record["step"]
        else:
            self.last_event = record["text"]

    def _take_step(self, record: dict[str, Any]) -> None:
        if self._start is None:
            self._start = (record["step"], self.elapsed_s)
        self.lr, self.grad_norm, self.tokens_per_s = record["lr"], record["grad_norm"], record["tokens_per_s"]
        loss = record["loss"]
        self.loss_is_finite = loss is not None
        if loss is not None:  # null stands for not finite, which would spoil the mean for good
            # Divided by the weights so far, the running mean is unbiased from the first step on.
            self._sum = _SMOOTHING * self._sum + loss
            self._weight = _SMOOTHING * self._weight + 1
            mean = self._sum / self._weight
            self.loss = mean
            self.history.add(mean)

    def fraction(self) -> float:
        """How much of the run is done, 0 to 1."""
        shares = [0.0]
        if self.total_steps:
            shares.append(self.step / self.total_steps)
        if self.budget_s:
            shares.append(self.elapsed_s / self.budget_s)
        return min(max(shares), 1.0)

    def seconds_left(self) -> float | None:
        """Training seconds until the run ends at the pace of this session; None while that cannot be told."""
        estimates = []
        if self.total_steps and self._start is not None and self.step > self._start[0]:
            pace = (self.elapsed_s - self._start[1]) / (self.step - self._start[0])
            estimates.append((self.total_steps - self.step) * pace)
        if self.budget_s:
            estimates.append(self.budget_s - self.elapsed_s)
        return max(min(estimates), 0.0) if estimates else None


class History:
    """A whole curve in bounded memory: when full, neighbours are averaged and each point stands for twice as many."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.points: list[float] = []
        self._every = 1
        self._sum = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        """Append a value; the list stays below twice `size` points."""
        self._sum += value
        self._count += 1
        if self._count < self._every:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) >= 2 * self.size:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self._every *= 2
