"""What a trained model does in the applications: a stream read on for a million tokens, the log of machines watched."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn2.data import machines
from hgrn2.data.corpus import Corpus
from hgrn2.eval.positions import buckets
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.settings import refuse
from hgrn2.study.applications import STREAM_TOKENS, gaps, measured_logs
from hgrn2.study.protocol import Study

SEGMENT = 1024
"""Tokens read at a time."""
PARTS = 16
"""Equal parts of a stream, each with a loss and the memory at its end."""


def stream(model: LanguageModel, corpus: Corpus) -> dict[str, Any]:
    """The beginning of a corpus read as one stream, the state carried over everything, ends of documents too.

    Returns:
        tokens: how many were predicted. nats: mean over all. parts: [tokens so far, nats/token of this part, bytes of
        the state, megabytes of the process, or of a GPU's allocator] 16 times. by_position: [first, end, nats/token].
    """
    tokens = min(STREAM_TOKENS, corpus.n_tokens - 1)
    refuse(tokens < PARTS, f"{corpus.name} has {corpus.n_tokens} tokens; a stream takes at least {PARTS + 1}")
    losses, parts, state, done = np.full(tokens, np.nan), [], None, 0  # memory that is there from the beginning
    with reading(model):
        for end in (tokens * (part + 1) // PARTS for part in range(PARTS)):
            for begin in range(done, end, SEGMENT):
                stop = min(begin + SEGMENT, end)
                text = torch.from_numpy(corpus.read(begin, stop - begin + 1)).to(model.device)
                features, state = model.hidden(text[None, :-1], state)
                losses[begin:stop] = _nats(model, features[0], text[1:])
            held = 0 if state is None else state.nbytes
            parts.append([end, round(float(losses[done:end].mean()), 5), held, memory_mb(model.device)])
            done = end
    return {
        "tokens": tokens, "nats": round(float(losses.mean()), 5), "parts": parts,
        "by_position": [[one.first, one.stop, round(one.nats_per_token, 5)] for one in buckets(losses[None])],
    }  # fmt: skip


def monitor(model: LanguageModel, study: Study) -> dict[str, Any]:
    """Logs of machines read from their beginning, the state carried.

    Returns:
        lower_bound: nats of a reading whose recipe is known. gaps: [idle entries, AUROC of the surprise at a run's
        first reading for faults, nats/token of that reading where there is none, jobs, bytes of the state of one
        machine in the end].
    """
    found = []
    with reading(model):
        for gap in gaps(study):
            logs = measured_logs(gap)
            surprise, held = _surprise(model, np.stack([log.entries for log in logs]), logs[0].firsts)
            faults = np.concatenate([log.faults for log in logs])
            normal = float(surprise[~faults].mean())
            found.append([gap, round(auroc(surprise[faults], surprise[~faults]), 4), round(normal, 4), len(faults),
                          held])  # fmt: skip
    return {"lower_bound": round(machines.noise_entropy(), 5), "gaps": found}


def _surprise(model: LanguageModel, entries: np.ndarray, firsts: np.ndarray) -> tuple[np.ndarray, int]:
    """-ln p of the entries at `firsts` of every log [machines * firsts], and bytes of the state of one of them."""
    tokens = torch.from_numpy(entries.astype(np.int64)).to(model.device)
    found: dict[int, np.ndarray] = {}
    state = None
    for begin in range(0, tokens.shape[1] - 1, SEGMENT):
        end = min(begin + SEGMENT, tokens.shape[1] - 1)
        features, state = model.hidden(tokens[:, begin:end], state)
        for first in firsts[(firsts > begin) & (firsts <= end)].tolist():
            found[first] = _nats(model, features[:, first - 1 - begin], tokens[:, first])
    held = 0 if state is None else state.nbytes // len(entries)
    return np.stack([found[first] for first in firsts.tolist()], 1).reshape(-1), held


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """How often a positive score is above a negative one; equal ones count half."""
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(above)


def memory_mb(device: torch.device) -> float | None:
    """Megabytes that a GPU's allocator holds for tensors; of a CPU those of this process in memory; None where the
    system does not say."""
    if device.type == "cuda":
        return round(torch.cuda.memory_allocated(device) / 1e6, 1)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1e3, 1)
    except (OSError, StopIteration, ValueError):
        return None


def _nats(model: LanguageModel, features: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """-ln p of targets [n] under features [n,D]."""
    logits = model.logits(features)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
