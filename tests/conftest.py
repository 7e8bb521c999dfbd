"""Fixtures of all tests: a tiny corpus, and a process that tests leave as they found it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread in each of the parallel processes, and in those that they start: more would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Kernels are tested in Triton's interpreter; it is asked for once, when the package is imported, which importing
    # hgrn2.ops does by way of torch.compile.
    os.environ.setdefault("TRITON_INTERPRET", "1")


SHARED = Path(os.environ.get("HGRN2_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The path of a file of the real-data bundle; skips where the bundle is not there."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"real data {name} is not in ../shared/data (set HGRN2_DATA)")
        return SHARED / name

    return find


@pytest.fixture(scope="session")
def threads() -> int:
    """PyTorch's thread count before any test has changed it."""
    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_stay_as_they_were(threads: int) -> Iterator[None]:
    """A test that sets the thread count leaves it to no other: sums come out in other bits with another count."""
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared byte corpus of about 6,000 tokens in a dozen documents, so that runs on it end in a second."""
    from hgrn2.cli.main import entry

    folder = tmp_path_factory.mktemp("tiny")
    for n in range(12):
        words = " ".join(f"line {n} word {(n * 7 + k * k) % 23}" for k in range(40))
        (folder / f"{n:02d}.txt").write_text(f"Document {n}.\n{words}\n")
    out = folder / "corpus"
    command = ["data", "prepare", *(str(p) for p in sorted(folder.glob("*.txt"))), "--out", str(out)]
    assert entry([*command, "--tokenizer", "bytes", "--valid-fraction", "0.2"]) == 0
    return out
