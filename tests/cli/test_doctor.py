"""`hgrn2 doctor`: all is well here; a kernel that is wrong is found, avoided from then on, and trusted when asked."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2 import ops
from hgrn2.cli.main import entry
from hgrn2.doctor import processes, speed
from hgrn2.doctor.checks import Check, planned
from hgrn2.doctor.outcome import Outcome
from hgrn2.gpu import GPU
from hgrn2.ops import known_bad
from hgrn2.ops.backend import find
from hgrn2.ops.native import build, call
from hgrn2.testing.cases import Case

SCAN = ["doctor", "--device", "cpu", "--ops", "gated_scan"]
X = torch.rand(1, 5, 4, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A private cache folder: the kernels already built are loaded, the user's own records are out of reach."""
    kernels, _ = build.library()
    monkeypatch.setenv("HGRN2_CACHE", str(tmp_path / "cache"))
    known_bad.reason.cache_clear()
    assert build.library()[0] is kernels
    yield tmp_path / "cache"
    known_bad.reason.cache_clear()


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A native backward of the scan whose gate gradients are a thousandth too large; call it to undo that."""
    if build.library()[0] is None:
        pytest.skip(build.library()[1])
    right = call.elementwise

    def planted(name: str, dtype: torch.dtype, offsets: Any, channels: int, tensors: Any, **options: Any) -> None:
        right(name, dtype, offsets, channels, tensors, **options)
        if name == "scan_backward":
            tensors[6].mul_(1.001)

    monkeypatch.setattr(call, "elementwise", planted)
    return lambda: monkeypatch.setattr(call, "elementwise", right)


def printed(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> tuple[str, str]:
    capsys.readouterr()
    assert entry(arguments) == code
    found = capsys.readouterr()
    return found.out, found.err


def examined(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    return json.loads(printed(capsys, [*SCAN, "--json"], code)[0])


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    out, err = printed(capsys, ["doctor", "--device", "cpu"], 0)
    assert f"torch {torch.__version__}" in out
    assert ops.explain("gated_scan", X, X).rpartition(": ")[2] in out
    assert "checks passed in " in out
    assert "cpu: gated_scan on chunked" in err
    assert "wrong" not in out + err
    for name in ("hgru2", "hgru2_step", "gated_outer_scan", "gated_outer_step", "gated_scan", "causal_conv"):
        assert name in out
    assert not (own_cache / known_bad.FILE).exists()


def test_json_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys, 0)
    assert found["healthy"]
    assert found["sentences"] == []
    assert found["machine"]["torch"] == torch.__version__
    (device,) = found["devices"]
    assert {row["op"] for row in device["choices"]} >= {"hgru2", "gated_scan"}
    assert all(row["backend"] and row["why"] for row in device["choices"])
    backends = {row["backend"] for row in found["checks"]}
    assert backends == ({"native", "chunked"} if build.library()[0] else {"chunked"})
    assert {row["dtype"] for row in found["checks"]} >= {"float32", "bfloat16"}
    assert all(row["ok"] and float(row["error"]) <= row["allowed"] for row in found["checks"])


def test_a_wrong_kernel_is_found_and_avoided_until_forgotten(
    capsys: pytest.CaptureFixture[str], own_cache: Path, wrong: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = printed(capsys, SCAN, 1)
    assert err.count("hgrn2: gated_scan in ") == 1
    assert "on native is wrong on cpu (d f off by" in err
    assert "backend auto will use chunked instead" in err
    assert "failed" in out
    assert own_cache.stat().st_mode & 0o077 == 0
    said = ops.explain("gated_scan", X, X)
    assert "runs on chunked" in said
    assert "hgrn2 doctor found gated_scan wrong on native here" in said
    assert ops.explain("causal_conv", X, X).startswith("causal_conv on cpu float32 runs on native")
    auto, chunked = (ops.gated_scan(X, X, backend=name)[0] for name in ("auto", "chunked"))
    assert torch.equal(auto, chunked)
    assert ops.explain("gated_scan", X, X, backend="native").endswith("for this processor")  # by name it still runs
    assert "1 records of known-bad kernels forgotten" in printed(capsys, ["doctor", "--forget"], 0)[0]
    assert "runs on native" in ops.explain("gated_scan", X, X)
    assert "no kernel is known to be bad" in printed(capsys, ["doctor", "--forget"], 0)[0]


def test_a_kernel_that_is_right_again_is_trusted_again(
    capsys: pytest.CaptureFixture[str], wrong: Callable[[], None], own_cache: Path
) -> None:
    assert not examined(capsys, 1)["healthy"]
    assert (own_cache / known_bad.FILE).exists()
    wrong()
    assert examined(capsys, 0)["healthy"]
    assert not (own_cache / known_bad.FILE).exists()
    assert known_bad.reason("gated_scan", find("gated_scan", "native"), CPU) == ""


def test_a_kernel_that_raises_is_wrong_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: Callable[[], None]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(call, "elementwise", broken)
    found = examined(capsys, 1)
    failed = [row for row in found["checks"] if not row["ok"]]
    assert {row["backend"] for row in failed} == {"native"}
    assert failed[0]["failure"] == "RuntimeError: no kernel image is available"
    assert "runs on chunked" in ops.explain("gated_scan", X, X)


def remember_here() -> None:
    assert known_bad.remember([("gated_scan", find("gated_scan", "native"), CPU, "off by 1")], [])
    assert "off by 1" in known_bad.reason("gated_scan", find("gated_scan", "native"), CPU)


@pytest.mark.parametrize("part", ["torch", "hgrn2", "device", "kernels"])
def test_records_of_another_place_say_nothing(part: str, own_cache: Path) -> None:
    remember_here()
    (record,) = json.loads((own_cache / known_bad.FILE).read_text())
    record["place"][part] += "+other"
    (own_cache / known_bad.FILE).write_text(json.dumps([record]))
    known_bad.reason.cache_clear()
    assert known_bad.reason("gated_scan", find("gated_scan", "native"), CPU) == ""
    assert known_bad.forget() == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"op": "gated_scan"}]', "\xff"])
def test_a_broken_file_of_records_says_nothing_and_is_replaced(text: str, own_cache: Path) -> None:
    remember_here()
    (own_cache / known_bad.FILE).write_bytes(text.encode("latin-1"))
    known_bad.reason.cache_clear()
    assert known_bad.reason("gated_scan", find("gated_scan", "native"), CPU) == ""
    remember_here()


def test_a_folder_that_others_can_write_to_is_not_read(own_cache: Path, wrong: Callable[[], None]) -> None:
    remember_here()
    own_cache.chmod(0o777)
    known_bad.reason.cache_clear()
    assert known_bad.reason("gated_scan", find("gated_scan", "native"), CPU) == ""
    assert not known_bad.remember([("gated_scan", find("gated_scan", "native"), CPU, "off by 1")], [])


def test_what_cannot_be_remembered_is_said(
    capsys: pytest.CaptureFixture[str], own_cache: Path, wrong: Callable[[], None]
) -> None:
    own_cache.mkdir()
    own_cache.chmod(0o777)
    assert "it will still be used" in printed(capsys, SCAN, 1)[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--device", "tpu9"], "tpu9"),
        (["--device", "meta"], "holds no numbers"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_devices(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = printed(capsys, ["doctor", *arguments], 2)
    assert err.startswith("hgrn2: error: ")
    assert word in err


def test_memory_that_runs_out_is_no_fault_of_the_kernel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: Callable[[], None]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(call, "elementwise", full)
    _, err = printed(capsys, SCAN, 1)
    assert "could not be checked on cpu" in err
    assert known_bad.records() == []


def test_several_processes_find_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    kernels, _ = build.library()
    if kernels is not None and Path(kernels._name).exists():  # so that no process builds it again
        own_cache.mkdir(mode=0o700)
        shutil.copy2(kernels._name, own_cache)
    command = ["doctor", "--device", "cpu", "--ops", "causal_conv", "--json"]
    alone = json.loads(printed(capsys, command, 0)[0])
    monkeypatch.setattr(processes, "size", lambda devices: 2)
    out, err = printed(capsys, command, 0)
    together = json.loads(out)
    assert "2 processes are starting" in err
    assert "cpu: causal_conv on chunked" in err
    names = ("op", "backend", "dtype", "case", "ok", "worst")
    assert [[row[name] for name in names] for row in together["checks"]] == [
        [row[name] for name in names] for row in alone["checks"]
    ]
    assert together["seconds"] >= max(row["seconds"] for row in together["checks"])


class Deadly(Case):
    """A case that ends every process that is sent it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def test_a_process_that_dies_fails_its_check_alone() -> None:
    (good, *_) = planned([CPU], ("causal_conv",))
    bad = Check("causal_conv", "chunked", CPU, torch.float32, Deadly(op="causal_conv"))
    arrived: list[Outcome] = []
    outcomes = processes.run([good, bad, good], 1, arrived.append)
    assert [outcome.ok for outcome in outcomes] == [True, False, True]
    assert outcomes[1].what == "the process that ran it ended with exit code 3"
    assert not outcomes[1].unfinished
    assert [outcome.check for outcome in arrived] == [good, bad, good]


def test_a_device_that_admits_no_further_process_is_checked_by_this_one() -> None:
    (good, *_) = planned([CPU], ("causal_conv",))
    arrived: list[Outcome] = []
    missing = Check("causal_conv", "chunked", torch.device("cuda", 99), torch.float32, good.case)
    outcomes = processes.run([missing, good, missing], 1, arrived.append)
    assert [outcome.ok for outcome in outcomes] == [False, True, False]
    assert [outcome.unfinished for outcome in outcomes] == [False, False, True]  # the first one lost the device
    assert arrived == outcomes


def test_processes_are_for_gpus_with_cores_to_compile_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.size([CPU]) == 1
    gpu = torch.device("cuda", 0)
    for cores, gib, expected in ((16, 80, 8), (4, 80, 4), (2, 80, 1), (1, 80, 1), (16, 6, 3), (16, 1, 1)):
        found = GPU("a GPU", gib << 30, 0, 132, (9, 0))
        monkeypatch.setattr(processes, "gpu", lambda device, found=found: found if device.type == "cuda" else None)
        monkeypatch.setattr(processes, "environment", lambda cores=cores: {"cores": cores})
        assert processes.size([CPU, gpu]) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, ["doctor", "--device", "cuda", "--json"], 0)[0])
    assert {row["backend"] for row in found["checks"]} >= {"triton", "chunked"}
    assert found["machine"]["gpu"] in found["devices"][0]["name"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_a_wrong_kernel_is_avoided(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hgrn2.ops.gated_scan import triton

    right = triton.backward
    monkeypatch.setattr(processes, "size", lambda devices: 1)  # other processes would import what is right
    monkeypatch.setattr(triton, "backward", lambda *a: tuple(x * 1.1 for x in right(*a)))
    command = ["doctor", "--device", "cuda", "--ops", "gated_scan"]
    assert "auto will use chunked instead" in printed(capsys, command, 1)[1]
    x = X.cuda()
    assert "runs on chunked" in ops.explain("gated_scan", x, x)
    assert "1 records" in printed(capsys, ["doctor", "--forget"], 0)[0]
    assert "runs on triton" in ops.explain("gated_scan", x, x)


def test_what_is_slow_here_is_said_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = {"avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr(speed, "environment", lambda: {"cores": 64})
    monkeypatch.setattr(speed, "_rate", lambda dtype: 3.0 if dtype == torch.bfloat16 else 100.0)
    monkeypatch.setattr(build, "library", lambda: (object(), ""))
    said = " ".join(speed.slow_parts([CPU]))
    for part in ("of 64 cores", "no AVX-512", "3.0 GFLOP/s, 100 in float32", "train.precision=float32"):
        assert part in said
    monkeypatch.setattr(build, "library", lambda: (None, "no C++ compiler (g++, c++ or clang++) was found"))
    assert "no C++ compiler" in " ".join(speed.slow_parts([CPU]))
    monkeypatch.undo()
    out, _ = printed(capsys, SCAN, 0)
    found = json.loads(printed(capsys, [*SCAN, "--json"], 0)[0])["slow"]
    assert ("slow on this processor:" in out) == bool(found)


def test_a_processor_with_everything_is_not_called_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True, "amx_bf16": True})
    monkeypatch.setattr(speed, "environment", lambda: {"cores": torch.get_num_threads()})
    monkeypatch.setattr(build, "library", lambda: (object(), ""))
    assert speed.slow_parts([CPU]) == []
    assert speed.slow_parts([torch.device("cuda")]) == []


def test_rates_and_times_are_measured() -> None:
    assert speed._rate(torch.float32) > 0
    assert speed._scan_ms("chunked") > 0
