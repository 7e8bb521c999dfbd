"""What a captured graph relies on: block numbers at one address, and states that are cleared before it runs."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-vllm", allow_module_level=True)


@pytest.fixture
def pool() -> Tensor:
    return torch.arange(1.0, 10.0).repeat_interleave(3).view(9, 3)


@pytest.fixture
def builder(pool: Tensor) -> Any:
    from hgrn2.vllm.pool import StepBuilder

    config = SimpleNamespace(
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=8, static_forward_context={"layer": SimpleNamespace(kv_cache=(pool,))}
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        cache_config=SimpleNamespace(mamba_cache_mode="none"),
    )
    return StepBuilder(SimpleNamespace(block_size=16), ["layer"], config, torch.device("cpu"))


def batch(lengths: list[int], read: list[int], blocks: list[int]) -> Any:
    """Sequences that read so many tokens after so many others; lengths of 0 pad the batch."""
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    after = (torch.tensor(lengths) + torch.tensor(read)).int()
    return SimpleNamespace(
        query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=after, seq_lens_cpu_upper_bound=after,
        block_table_tensor=torch.tensor(blocks).int().unsqueeze(1), num_reqs=len(lengths),
        num_actual_tokens=sum(lengths), max_query_len=max(lengths),
    )  # fmt: skip


def test_steps_of_one_token_find_their_blocks_at_one_address(builder: Any, pool: Tensor) -> None:
    before = pool.clone()
    first = builder.build(0, batch([1, 1, 1, 0], [5, 7, 9, 0], [4, 2, 8, 6]))
    assert first.blocks.tolist() == [4, 2, 8, 0]
    assert (first.ones, first.offsets) == (4, None)
    kept = first.blocks
    second = builder.build(0, batch([1, 1, 0, 0], [6, 8, 0, 0], [4, 2, 3, 3]))
    assert second.blocks.data_ptr() == kept.data_ptr()
    assert kept.tolist() == [4, 2, 0, 0]
    assert torch.equal(pool, before)


def test_a_sequence_that_begins_finds_an_empty_state(builder: Any, pool: Tensor) -> None:
    before = pool.clone()
    step = builder.build(0, batch([1, 1], [0, 3], [5, 6]))  # a prompt of one token beside a text that is being written
    assert step.offsets is None
    assert not pool[5].any()
    step = builder.build(0, batch([1, 3, 4], [3, 2, 0], [6, 7, 1]))
    assert (step.ones, step.tokens, step.blocks.tolist()) == (1, 8, [6, 7, 1])
    assert step.offsets.tolist() == [0, 3, 7]
    assert not pool[1].any()
    untouched = [0, 2, 3, 4, 6, 7, 8]
    assert torch.equal(pool[untouched], before[untouched])
