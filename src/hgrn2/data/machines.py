"""Made streams of a machine's log, one byte an entry, in which what is right now was said long ago.

A machine does one job after another:

    LOAD k        one of 8 recipes, bytes 200 to 207
    idle          g readings around 20 (autoregressive, 0.9, standard deviation about 3, in [0, 40]); one in 50 of them
                  is instead an operator's event, bytes 220 to 227, that means nothing
    START         byte 210
    run           4 readings: 60 + 16 k plus rounded normal noise of standard deviation 2
    STOP          byte 211

Whoever forecasts the first reading of a run must know the recipe, g entries back, and nothing in between tells it:
without it the best forecast is one of 8 levels. A fault is a run at the level of another recipe. Neighbouring levels
are 8 standard deviations apart, so that the recipe decides everything but the noise. It is generated data: how well
models remember is all that it shows.
"""

import math
from dataclasses import dataclass

import numpy as np

RECIPES, RUN = 8, 4
LOAD, START, STOP, EVENTS = 200, 210, 211, 220
LOWEST, APART, NOISE = 60, 16, 2.0
IDLE, IDLE_NOISE, IDLE_MEMORY, IDLE_MOST = 20.0, 1.3, 0.9, 40
EVENT_RATE = 0.02
SHORTEST, USUAL = 2, 32
"""Idle entries of a job at least, and what most jobs stay below."""
MOST = 0.8
"""Of the jobs that are trained on; the others wait for longer."""
VOCABULARY = 256


@dataclass(frozen=True)
class Log:
    """A machine's log, and of each of its jobs the place of the first reading of the run."""

    entries: np.ndarray
    """uint8 [n]."""
    firsts: np.ndarray
    """int64 [jobs]."""
    faults: np.ndarray
    """bool [jobs]: the run is at another recipe's level."""


def log_of(gaps: np.ndarray, seed: int, *, fault_rate: float = 0.0) -> Log:
    """The log of one machine whose jobs are idle for `gaps` entries, a function of its arguments alone."""
    random = np.random.default_rng(seed)
    parts, firsts, faults, at = [], [], random.random(len(gaps)) < fault_rate, 0
    for gap, fault in zip(gaps.tolist(), faults.tolist(), strict=True):
        recipe = int(random.integers(RECIPES))
        made = (recipe + int(random.integers(1, RECIPES))) % RECIPES if fault else recipe
        run = LOWEST + APART * made + np.rint(NOISE * random.standard_normal(RUN))
        parts.append(np.concatenate([[LOAD + recipe], _idle(gap, random), [START], run, [STOP]]))
        firsts.append(at + gap + 2)
        at += gap + RUN + 3
    return Log(np.concatenate(parts).astype(np.uint8), np.array(firsts), faults)


def training_logs(tokens: int, longest: int, seed: int, machine_tokens: int = 8192) -> list[np.ndarray]:
    """Logs of as many machines as make so many entries, about `machine_tokens` each; idle entries of a job are
    log-uniform in [SHORTEST, USUAL), of one job in five in [USUAL, longest)."""
    found, total = [], 0
    for number in range(max(1, math.ceil(tokens / machine_tokens))):
        random = np.random.default_rng((seed, number))
        jobs = math.ceil(machine_tokens / (SHORTEST + RUN + 3))
        usual = random.random(jobs) < MOST
        low, high = np.where(usual, SHORTEST, USUAL), np.where(usual, USUAL, max(longest, USUAL + 1))
        gaps = np.exp(random.uniform(np.log(low), np.log(high))).astype(np.int64)
        used = int(np.searchsorted(np.cumsum(gaps + RUN + 3), machine_tokens)) + 1
        found.append(log_of(gaps[:used], int(random.integers(2**62))).entries)
        total += len(found[-1])
        if total >= tokens:
            break
    return found


def noise_entropy() -> float:
    """Nats of a run's reading whose recipe is known: what no forecast gets below."""
    edges = np.arange(-30, 31)
    below = np.array([0.5 * (1 + math.erf((edge + 0.5) / (NOISE * math.sqrt(2)))) for edge in edges])
    mass = np.diff(below)
    return float(-(mass[mass > 0] * np.log(mass[mass > 0])).sum())


def _idle(gap: int, random: np.random.Generator) -> np.ndarray:
    """Readings of a machine that waits, and events that mean nothing."""
    steps = IDLE_NOISE * random.standard_normal(gap)
    found, value = np.empty(gap), IDLE
    for n, step in enumerate(steps.tolist()):
        value = IDLE + IDLE_MEMORY * (value - IDLE) + step
        found[n] = value
    found = np.clip(np.rint(found), 0, IDLE_MOST)
    events = random.random(gap) < EVENT_RATE
    found[events] = EVENTS + random.integers(0, 8, int(events.sum()))
    return found
