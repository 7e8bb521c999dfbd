"""How tokens are shared out among blocks of threads, and that results of compilation are kept safely."""

import pytest
import torch

from hgrn2.errors import UserError
from hgrn2.ops.cuda import nvrtc, plan

CPU = torch.device("cpu")


def covered(made: plan.Plan, tokens: int) -> list[int]:
    """How often each token is scanned."""
    seen = [0] * tokens
    for sequence, begin, size, *_ in made.items.tolist():
        for token in range(begin, begin + size) if sequence >= 0 else ():
            seen[token] += 1
    return seen


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [64, 128, 4096])
@pytest.mark.parametrize("lengths", [(1,), (64, 64), (0, 5, 0, 200, 63, 0), (130, 1, 1, 1, 65)])
def test_packed_documents_are_covered_once_and_in_order(lengths: tuple[int, ...], length: int, reverse: bool) -> None:
    offsets = torch.tensor((0, *lengths)).cumsum(0)
    tokens = int(offsets[-1])
    made = plan.packed(offsets, tokens, length, reverse)
    assert covered(made, tokens) == [1] * tokens
    items = [row for row in made.items.tolist() if row[0] >= 0]
    assert sorted({row[0] for row in items}) == list(range(len(lengths)))  # empty ones too: their state is handed on
    for n, size in enumerate(lengths):
        own = [row for row in items if row[0] == n]
        assert [bool(row[3]) for row in own] == [True] + [False] * (len(own) - 1)
        assert [bool(row[4]) for row in own] == [False] * (len(own) - 1) + [True]
        starts = [row[1] for row in own]
        assert starts == sorted(starts, reverse=reverse)
        assert sum(row[2] for row in own) == size
    chunk = 0
    for row in items:
        assert row[5] == chunk
        chunk += -(-row[2] // plan.CHUNK)
    assert chunk <= made.chunks


def test_offsets_on_the_host_are_refused_and_those_on_the_device_stay_inside() -> None:
    wrong = torch.tensor([0, 9, 5, 20])
    with pytest.raises(UserError, match="cu_seqlens must rise from 0"):
        plan.make(1, 12, wrong, 1, False, CPU)
    made = plan.packed(wrong, 12, 64, False)  # as if it could not be read
    assert covered(made, 12) == [1] * 12


@pytest.mark.parametrize(
    ("sequences", "tokens", "blocks", "pieces"),
    [(16, 2048, 16, 1), (1, 32768, 16, 8), (1, 100, 1, 1), (4096, 64, 8, 1)],
)
def test_sequences_are_cut_only_where_multiprocessors_would_idle(
    sequences: int, tokens: int, blocks: int, pieces: int
) -> None:
    length = plan.segment_length(sequences, tokens, blocks, processors=132)
    assert length % plan.CHUNK == 0
    assert -(-tokens // length) == pieces


def test_a_missing_compiler_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    with pytest.raises(UserError, match="libnvrtc was not found"):
        nvrtc.library()


def test_a_plan_that_a_graph_reads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache may drop a plan; a graph that was captured with it reads its table again at every replay."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(plan, "processors", lambda _: 132)
    made = plan.Plan(torch.zeros(1, 8, dtype=torch.int32), 1, False)
    monkeypatch.setattr(plan, "_dense", lambda *_: made)
    monkeypatch.setattr(plan, "_captured", {})
    assert plan.make(2, 128, None, 4, False, torch.device("cuda")) is made
    assert made in plan._captured.values()
