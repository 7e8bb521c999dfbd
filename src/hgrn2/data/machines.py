"""Made streams of a machine's log, one byte an entry, in which what is right now was said long ago.

A machine does one job after another. A job is LOAD k, one of 8 recipes (bytes 200 to 207), and then one to six runs:

    idle          g entries, each of 16 to 19 with equal chance; one in 50 of them is instead an operator's event, bytes
                  220 to 227, that means nothing
    START         byte 210
    run           2 readings: 60 + 16 k plus rounded normal noise of standard deviation 1
    STOP          byte 211

Whoever forecasts the first reading of a job must know the recipe, g entries back, and nothing in between tells it:
without it the best forecast is one of 8 levels. A fault is a job that runs at the level of another recipe. Neighbouring
levels are 16 standard deviations apart, so that the recipe decides everything but the noise. It is generated data: how
well models remember is all that it shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECIPES, RUN = 8, 2
LOAD, START, STOP, EVENTS = 200, 210, 211, 220
LOWEST, APART, NOISE = 60, 16, 1.0
IDLE, IDLE_VALUES = 16, 4
EVENT_RATE = 0.02
MOST_RUNS = 6
USUAL, USUAL_RATE = 16, 0.8
"""Of the idle times that are trained on, so many are at most USUAL entries."""
VOCABULARY = 256


@dataclass(frozen=True)
class Log:
    """A machine's log, and of each of its jobs the place of the first reading of its first run."""

    entries: np.ndarray
    """uint8 [n]."""
    firsts: np.ndarray
    """int64 [jobs]."""
    faults: np.ndarray
    """bool [jobs]: the job runs at another recipe's level."""


def log_of(jobs: Sequence[Sequence[int]], seed: int, *, fault_rate: float = 0.0) -> Log:
    """The log of one machine, a function of its arguments alone; `jobs` has the idle entries before each run of each
    job."""
    random = np.random.default_rng(seed)
    parts, firsts, faults, at = [], [], random.random(len(jobs)) < fault_rate, 0
    for gaps, fault in zip(jobs, faults.tolist(), strict=True):
        recipe = int(random.integers(RECIPES))
        made = (recipe + int(random.integers(1, RECIPES))) % RECIPES if fault else recipe
        parts.append(np.array([LOAD + recipe]))
        firsts.append(at + 1 + gaps[0] + 1)
        for gap in gaps:
            run = LOWEST + APART * made + np.rint(NOISE * random.standard_normal(RUN))
            parts.append(np.concatenate([_idle(gap, random), [START], run, [STOP]]))
        at += 1 + sum(gaps) + len(gaps) * (RUN + 2)
    return Log(np.concatenate(parts).astype(np.uint8), np.array(firsts), faults)


def training_logs(tokens: int, longest: int, seed: int, machine_tokens: int = 8192) -> list[np.ndarray]:
    """Logs of as many machines as make so many entries, at least `machine_tokens` each. Idle times are log-uniform in
    [0, USUAL], one in five in [USUAL, longest]."""
    found, total = [], 0
    while total < tokens:
        random = np.random.default_rng((seed, len(found)))
        jobs, size = [], 0
        while size < machine_tokens:
            jobs.append([_gap(longest, random) for _ in range(int(random.integers(1, MOST_RUNS + 1)))])
            size += 1 + sum(jobs[-1]) + len(jobs[-1]) * (RUN + 2)
        found.append(log_of(jobs, int(random.integers(2**62))).entries)
        total += len(found[-1])
    return found


def noise_entropy() -> float:
    """Nats of a run's reading whose recipe is known: what no forecast gets below."""
    edges = np.arange(-30, 31)
    below = np.array([0.5 * (1 + math.erf((edge + 0.5) / (NOISE * math.sqrt(2)))) for edge in edges])
    mass = np.diff(below)
    return float(-(mass[mass > 0] * np.log(mass[mass > 0])).sum())


def _gap(longest: int, random: np.random.Generator) -> int:
    if random.random() < USUAL_RATE:
        return int(math.exp(random.uniform(0, math.log(USUAL + 2)))) - 1
    return int(math.exp(random.uniform(math.log(USUAL), math.log(max(longest, USUAL) + 1))))


def _idle(gap: int, random: np.random.Generator) -> np.ndarray:
    """Entries of a machine that waits, and events that mean nothing."""
    found = random.integers(IDLE, IDLE + IDLE_VALUES, gap)
    events = random.random(gap) < EVENT_RATE
    found[events] = EVENTS + random.integers(0, 8, int(events.sum()))
    return found
