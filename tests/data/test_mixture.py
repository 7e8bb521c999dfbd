"""Mixtures of corpora: shares, order, epochs of each, the same on any number of ranks, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrn2.data.corpus import Corpus, prepare
from hgrn2.data.mixture import MixedBatches, Mixture, held_out
from hgrn2.data.packing import Batches, BatchPlan
from hgrn2.data.shares import PERIOD, parse_mixture, quotas
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.errors import UserError


def corpus(letter: str, documents: int, length: int = 11) -> Corpus:
    return Corpus.from_documents([letter * length] * documents, ByteTokenizer(), name=letter)


def plan(size: int = 8, **more: Any) -> BatchPlan:
    return BatchPlan(sequence_length=8, batch_size=size, seed=3, **more)


CORPORA = [corpus("a", 90), corpus("b", 7), corpus("c", 30)]
WEIGHTS = [5.0, 3.0, 2.0]


def letters(batches: MixedBatches, steps: range) -> Counter[str]:
    """Rows of each corpus; a row holds one letter and separators."""
    found: Counter[str] = Counter()
    for step in steps:
        found.update(chr(row.min()) for row in batches.batch(step).inputs)
    return found


def test_every_batch_has_about_the_shares_and_a_period_has_them_exactly() -> None:
    batches = MixedBatches(Mixture(CORPORA, WEIGHTS), plan(10))
    counts = [letters(batches, range(step, step + 1)) for step in range(40)]
    assert all(
        abs(one[letter] - 10 * w) < 2 for one in counts for letter, w in zip("abc", (0.5, 0.3, 0.2), strict=True)
    )
    period = batches.places(np.arange(PERIOD))
    found = Counter(n for n, _ in period)
    assert [found[n] for n in range(3)] == [32768, 19661, 13107] == quotas((0.5, 0.3, 0.2))
    told = batches.shares(PERIOD // 10)
    assert sum(share["sequences"] for share in told.values()) == PERIOD // 10 * 10
    assert told["b"]["epochs"] == pytest.approx(told["b"]["sequences"] / 9, abs=1e-3)  # 7 x 12 tokens: 9 windows of 8
    later = batches.shares(PERIOD)
    assert [later[name]["sequences"] for name in "abc"] == [quota * 10 for quota in batches.mixture.quotas]


def test_a_corpus_in_a_mixture_is_read_as_by_itself() -> None:
    mixture = Mixture(CORPORA, WEIGHTS)
    batches = MixedBatches(mixture, plan())
    places = batches.places(np.arange(PERIOD - 500, PERIOD + 500))
    starts = np.array([start for n, start in places if n == 0])
    alone = Batches(CORPORA[0], plan())
    first = Counter(n for n, _ in batches.places(np.arange(PERIOD - 500)))[0]
    assert np.array_equal(starts, alone.starts(np.arange(first, first + len(starts))))
    one = MixedBatches(Mixture(CORPORA[:1], [0.1]), plan())
    assert np.array_equal(one.batch(5).inputs, alone.batch(5).inputs)
    small = [start for n, start in batches.places(np.arange(2000)) if n == 1]
    windows = Batches(CORPORA[1], plan()).windows_per_epoch
    for epoch in range(len(small) // windows):  # each window once an epoch, in the order of the run
        assert len(set(small[epoch * windows : (epoch + 1) * windows])) == windows


def test_the_same_rows_on_any_number_of_ranks_and_parts() -> None:
    mixture = Mixture(CORPORA, WEIGHTS)
    whole = MixedBatches(mixture, plan(12, reset_at_documents=True))
    for step in (0, 7, 10**6):
        batch = whole.batch(step)
        for world, parts in ((2, 1), (1, 3), (3, 2)):
            found = [
                MixedBatches(mixture, plan(12, reset_at_documents=True, rank=rank, world=world)).batch(
                    step, part, parts
                )
                for rank in range(world)
                for part in range(parts)
            ]
            assert np.array_equal(np.concatenate([one.inputs for one in found]), batch.inputs)
            assert np.array_equal(np.concatenate([one.targets for one in found]), batch.targets)
        borders = batch.cu_seqlens
        assert borders is not None
        flat = batch.inputs.reshape(-1)
        inside = borders[(borders % 8 > 0)]
        assert len(inside) > 0
        assert set(flat[inside - 1].tolist()) == {256}  # a document begins after a separator
        assert set(range(0, 97, 8)) <= set(borders.tolist())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["corpora/a"], "'corpora/a' has no weight; write FOLDER=WEIGHT"),
        (["a=1", "b=nan"], "the weight of b is 'nan'; it must be a positive number"),
        (["a=1", "b=inf"], "must be a positive number"),
        (["a=1", "b=-2"], "must be a positive number"),
        (["a=1", "b=0"], "must be a positive number"),
        (["a=1", "b="], "must be a positive number"),
        (["a=1", "./a=2"], "names a twice"),
        (["a=1", "b=1e-9"], "b has a share of 1e-09; the smallest is 1/65,536"),
        (["a=1e308", "b=1e308", "c=1e-300"], "c has a share of"),
    ],
)
def test_weights_that_cannot_be(written: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_mixture(written)


def test_quotas_sum_to_a_period() -> None:
    assert parse_mixture(["a=1e308", "b=1e308"])[0].weight == 0.5
    for weights in ([1.0], [1 / 3] * 3, [1 - 2 / PERIOD, 1 / PERIOD, 1 / PERIOD], [1 / 7] * 7):
        assert sum(quotas(weights)) == PERIOD
        assert np.allclose(np.array(quotas(weights)) / PERIOD, weights, atol=1 / PERIOD)


def test_corpora_that_do_not_mix(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="chars was prepared with another tokenizer than a: they do not mix"):
        Mixture([CORPORA[0], Corpus.from_text("abc", CharTokenizer("abc"), name="chars")], [1, 1])
    with pytest.raises(UserError, match="corpus shorter than one sequence: b"):
        MixedBatches(Mixture([CORPORA[0], corpus("b", 1, 3)], [1, 1]), plan())
    with pytest.raises(UserError, match="gone' is not the folder of a prepared corpus"):
        Mixture.open([f"{tmp_path}/gone=1"], "train")
    prepare([write_lines(["text"])], tmp_path / "a", "bytes", valid_fraction=0)
    with pytest.raises(UserError, match="has a split 'valid' to measure on"):
        held_out([f"{tmp_path}/a=1"], "valid")
    one = Mixture([CORPORA[0], CORPORA[1]], [1, 3])
    assert one.identity() == Mixture([CORPORA[0], CORPORA[1]], [2, 6]).identity()
    assert one.identity() != Mixture([CORPORA[0], CORPORA[1]], [3, 1]).identity()


def test_a_run_on_a_mixture_goes_on_where_it_stopped(
    tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hgrn2.cli.main import entry

    monkeypatch.setattr("hgrn2.tasks.lm.task._samples", lambda *_: ())
    other = tmp_path / "other"
    (tmp_path / "words.txt").write_text("other words entirely\n" * 300)
    prepare([tmp_path / "words.txt"], other, "bytes", valid_fraction=0.1)
    small = (
        "train.budget_s=0", "train.sequence_length=16", "train.batch_size=4", "train.log_every=1", "train.eval_every=0",
        "train.eval_tokens=100", "train.save_every=3", "train.steps=6",
        "model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=8",
        "optim.warmup_steps=2", "optim.schedule=constant",
    )  # fmt: skip

    def train(weight: int) -> int:
        data = ("--data", f"{tiny_corpus}={weight}", f"{other}=1")
        return entry(["train", "lm", "demo", *data, "--out", str(tmp_path / "run"), "--json", "--set", *small])

    assert train(3) == 0
    last = tmp_path / "run/checkpoints/step-00000006"
    weights = (last / "model.safetensors").read_bytes()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert sum(share["sequences"] for share in summary["mixture"].values()) == 24
    shutil.rmtree(last)
    assert train(3) == 0  # from step 3
    assert (last / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "run/summary.json").read_text())["mixture"] == summary["mixture"]
    assert train(1) == 2
    assert entry(["eval", str(tmp_path / "run")]) == 2


MEASURED = """
import sys, numpy as np
from hgrn2.data.corpus import Corpus
from hgrn2.data.packing import Batches, BatchPlan

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

before = private()
corpus = Corpus.open(sys.argv[1])
batches = Batches(corpus, BatchPlan(sequence_length=2048, batch_size=8, reset_at_documents=True))
for step in range(10):
    batches.batch(step * 1000)
print(corpus.n_tokens, private() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory of a process is read from /proc")
def test_a_corpus_larger_than_memory_is_only_mapped(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    prepare([write_lines(["text"])], tmp_path / "out", "bytes", valid_fraction=0)
    tokens, path = 1 << 33, tmp_path / "out/train-00000.bin"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    split = manifest["splits"]["train"]
    split["tokens"] = split["shards"][0]["tokens"] = tokens
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    with path.open("r+b") as file:
        file.truncate(2 * tokens)  # 16 GiB that take no place on disk
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size == tokens
    assert grown < 32 << 20
