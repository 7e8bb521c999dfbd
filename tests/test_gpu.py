"""What a GPU is has one answer, and one module that asks PyTorch for it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hgrn2
from hgrn2 import gpu


def test_a_gpu_is_asked_once_and_other_devices_have_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def properties(index: int) -> SimpleNamespace:
        asked.append(index)
        return SimpleNamespace(name="a GPU", total_memory=80 << 30, multi_processor_count=132, major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    gpu._gpu.cache_clear()
    try:
        assert gpu.gpu("cuda") == gpu.gpu(torch.device("cuda", 3)) == gpu.GPU("a GPU", 80 << 30, 0, 132, (9, 0))
        assert (gpu.processors("cuda:3"), gpu.architecture("cuda:3"), asked) == (132, "sm90", [3])
    finally:
        gpu._gpu.cache_clear()
    for device in ("cpu", torch.device("meta")):
        assert (gpu.gpu(device), gpu.processors(device), gpu.architecture(device)) == (None, 1, "cpu")


def test_no_other_module_asks() -> None:
    root = Path(hgrn2.__file__).parent
    asking = re.compile(r"get_device_(properties|name|capability)\b")
    assert [p.name for p in root.rglob("*.py") if asking.search(p.read_text(encoding="utf-8"))] == ["gpu.py"]
