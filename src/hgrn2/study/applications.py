"""Two uses of a state of constant size, each a study with its baselines: who takes part, and on which data. No torch.

    stream    bytes of a text, read on without end: HGRN2, HGRN1 and attention with a window, trained with carried
              states, and HGRN2 trained on windows
    monitor   the log of machines (`hgrn2.data.machines`): forecasts, and faults that only a long memory can tell

Small models are of a shape of their own, 64 channels and two layers, so that minutes of a CPU are enough; their weights
start with a standard deviation of 0.1, since 0.02, which suits widths of a thousand, leaves 64 channels next to nothing
to begin with.
"""

from typing import Any

import numpy as np

from hgrn2.data import machines
from hgrn2.data.corpus import Corpus, Part
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.data.tokenizer_base import digest
from hgrn2.study.protocol import APPLICATIONS, GENERATED, Arm, Study

STREAM_TOKENS = 1_000_000
"""Held-out tokens that a stream has, at most."""
MONITOR_GAPS = (1 / 4, 1, 4, 16)
"""Idle entries before a run in what is measured, as multiples of the training length."""
MONITOR_LONGEST = 2
"""The same of the longest ones that are trained on."""
JOBS, MACHINES = 64, 16
"""Of each gap: measured jobs, and the machines that they are spread over."""
_SMALL = ("width=64", "layers=2", "glu_width=184", "init.std=0.1")
_SMALL_ALONE = ("width=64", "layers=3", "init.std=0.1")
CARRY = ("data.carry=true",)


def arms_of(study: Study) -> dict[str, Arm]:
    """The sides of an application by name, all of a size of equal parameters."""
    carry = CARRY if study.study == "stream" else (*CARRY, "data.reset_at_documents=true")
    window = (f"mixer.window={study.length}",)
    found = [
        _arm("hgrn2", study, run=carry),
        _arm("hgrn1", study, run=carry),
        _arm("window", study, "llama", window, (*carry, "train.compile_blocks=false")),
    ]
    if study.study == "stream":
        found.append(_arm("hgrn2-windows", study, "hgrn2"))
    else:
        found.append(_arm("mamba2", study, run=carry))
        found.append(_arm("llama", study, run=("data.reset_at_documents=true",)))
    return {arm.subject: arm for arm in found}


def _arm(
    name: str, study: Study, architecture: str = "", model: tuple[str, ...] = (), run: tuple[str, ...] = ()
) -> Arm:
    architecture = architecture or name
    small = (_SMALL_ALONE if architecture == "mamba2" else _SMALL) if study.size == "small" else ()
    return Arm(subject=name, architecture=architecture, set=(*small, *model), run=run)


def gaps(study: Study) -> list[int]:
    """Idle entries before the runs that are measured."""
    return [int(share * study.length) for share in MONITOR_GAPS]


def monitor_corpora(study: Study) -> tuple[Corpus, Corpus]:
    """Generated logs to train on, as many entries as the longest run reads or four million, and held-out ones."""
    tokens = min(max(study.sweep, study.final), 1 << 22)
    longest = MONITOR_LONGEST * study.length
    train = machines.training_logs(tokens, longest, seed=0)
    held_out = machines.training_logs(1 << 15, longest, seed=1)
    return corpus_of(train, f"{GENERATED} logs"), corpus_of(held_out, f"{GENERATED} logs, held out")


def corpus_of(logs: list[np.ndarray], name: str) -> Corpus:
    """A corpus whose documents are the logs of machines, an entry a token and a byte."""
    entries = np.concatenate(logs)
    starts = np.cumsum([0, *(len(log) for log in logs)])[:-1].astype(np.int64)
    mark: dict[str, Any] = {"machines": digest([entries.tobytes().hex(), starts.tolist()])}
    return Corpus(
        [Part(entries, starts)], name=name, tokenizer=ByteTokenizer(), vocab_size=machines.VOCABULARY,
        text_bytes=len(entries), mark=mark,
    )  # fmt: skip


def measured_logs(gap: int, machines_: int = MACHINES, jobs: int = JOBS) -> list[machines.Log]:
    """Logs of machines whose jobs all wait for `gap` entries; half of the runs are faults."""
    each = [[gap]] * (jobs // machines_)
    return [machines.log_of(each, seed=10_000 + 100 * gap + number, fault_rate=0.5) for number in range(machines_)]


def is_application(study: Study) -> bool:
    """Whether it is one of these."""
    return study.study in APPLICATIONS
