"""How a backend is chosen, explained, built and refused; compilers that fail in every way they can."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hgrn2 import ops
from hgrn2.errors import UserError
from hgrn2.ops import backend as backends
from hgrn2.ops import cache
from hgrn2.ops.backend import widest
from hgrn2.ops.hgru2 import registration
from hgrn2.ops.native import build

X = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
Fake = Callable[[str], None]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty private cache folder, and kernels that are looked for anew; afterwards all is as before."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("HGRN2_CACHE", str(cache))
    monkeypatch.delenv("HGRN2_NATIVE", raising=False)
    build.library.cache_clear()
    yield cache
    build.library.cache_clear()


@pytest.fixture
def compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Puts a g++ on an otherwise empty PATH: a shell script that runs the given lines when asked to compile to $out."""

    def install(lines: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "g++"
        find_out = 'for word in "$@"; do out=$word; done'
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit 0\n{find_out}\n{lines}\n')
        script.chmod(0o700)
        monkeypatch.setenv("PATH", str(folder))
        build.library.cache_clear()

    return install


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built library, compiled here once."""
    library, why = build.library()
    if library is None:
        pytest.skip(why)
    return Path(library._name)


def falls_back(reason: str) -> None:
    """`auto` runs on chunked and says why; `native` by name is refused with the same reason."""
    assert "runs on chunked: plain PyTorch on cpu" in ops.explain("hgru2", X, X, X, heads=2)
    assert reason in ops.explain("hgru2", X, X, X, heads=2)
    with pytest.raises(UserError, match="native cannot serve") as error:
        ops.hgru2(X, X, X, heads=2, backend="native")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    auto, chunked = (ops.hgru2(X, X, X, heads=2, backend=name)[0] for name in ("auto", "chunked"))
    assert torch.equal(auto, chunked)


def test_auto_prefers_native_and_names_run_what_they_say(backend: str) -> None:
    choice = "native" if build.library()[0] is not None else "chunked"
    assert f"hgru2 on cpu float32 runs on {choice}: " in ops.explain("hgru2", X, X, X, heads=2)
    assert ops.explain(ops.gated_scan, X, X, backend=backend).startswith(f"gated_scan on cpu float32 runs on {backend}")
    assert "runs on reference: asked for by name" in ops.explain("causal_conv", X.double(), backend="reference")


@pytest.mark.skipif(build.library()[0] is None, reason="no compiler")
@pytest.mark.parametrize(
    ("batch", "head", "expected"),
    [
        ((1, 2048, 1), 512, "chunked"),
        ((1, 2048, 1), 256, "native"),
        ((1, 2048, 1, True), 256, "chunked"),
        ((1, 2048, 1, True), 128, "native"),
        ((2, 2048, 1, True), 256, "native"),
        ((2, 2048, 1), 512, "native"),
        ((1, 2048, 4), 512, "native"),
        ((1, 256, 1), 512, "native"),
        ((8, 512, 4), 64, "native"),
    ],
)
def test_few_large_states_leave_no_thread_idle(
    batch: Any, head: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    choice = backends.choose(torch.device("cpu"), keys=head, values=head, batch=batch)
    assert choice.backend == expected
    why = f"2 threads compute few states of {head} x {head} sooner in chunks"
    assert (why in choice.why) == (expected == "chunked")


@pytest.mark.skipif(build.library()[0] is None, reason="no compiler")
@pytest.mark.parametrize(("lower_bound", "expected"), [(0.5, "chunked"), (0.1, "native"), (None, "native")])
def test_lower_bounds_decide_where_states_are_few_and_large(
    lower_bound: float | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = torch.zeros(1, 512, 256)
    bounds = None if lower_bound is None else torch.full((256,), lower_bound)
    assert f"runs on {expected}" in ops.explain("hgru2", x, x, x, bounds, heads=1)
    if lower_bound is not None:
        ran: list[str] = []
        monkeypatch.setattr(registration, "forward", lambda *given: (ran.append(given[-1]), (x, None))[1])
        ops.hgru2(x, x, x, bounds, heads=1)
        assert ran == [expected]


@pytest.mark.parametrize("name", ["gated_outer_step", "gated_step", "causal_conv_step"])
def test_explain_knows_steps(name: str) -> None:
    assert ops.explain(name, X[0]) == f"{name} on cpu float32 runs on chunked: one token needs no kernel of its own"


@pytest.mark.parametrize("device", ["meta"])
def test_native_is_for_the_cpu(device: str) -> None:
    x = X.to(device)
    assert f"runs on chunked: plain PyTorch on {device}; native runs on the CPU" in ops.explain("gated_scan", x, x)
    with pytest.raises(UserError, match=f"native runs on the CPU, the tensors are on {device}"):
        ops.gated_scan(x, x, backend="native")


def test_unknown_names_are_refused() -> None:
    weight, four = torch.ones(8, 3), X.unflatten(-1, (2, 4))
    calls: list[Callable[[], object]] = [
        lambda: ops.hgru2(X, X, X, heads=2, backend="metal"),
        lambda: ops.hgru2_step(X[0], X[0], X[0], heads=2, state=torch.ones(4, 2, 4, 4), backend="metal"),
        lambda: ops.gated_outer_scan(four, four, four, -four.abs(), backend="metal"),
        lambda: ops.gated_scan(X, X, backend="metal"),
        lambda: ops.causal_conv(X, weight, backend="metal"),
        lambda: ops.explain("hgru2", X, backend="metal"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"backend .metal. is unknown; choose auto, (cuda, )?triton, .*reference"):
            call()
    with pytest.raises(UserError, match="cuda cannot serve this call: cuda has no kernel for gated_scan"):
        ops.gated_scan(X, X, backend="cuda")
    with pytest.raises(UserError, match=r"operator 'scan' is unknown; choose one of .*hgru2, hgru2_step, "):
        ops.explain("scan", X)
    with pytest.raises(UserError, match="needs the tensors"):
        ops.explain("hgru2", heads=2)


def test_environment_variable_turns_native_off() -> None:
    code = (
        "import torch; from hgrn2 import ops; x = torch.ones(1, 3, 4); "
        "print(ops.explain('hgru2', x, x, x, heads=1)); ops.hgru2(x, x, x, heads=1); "
        "ops.hgru2(x, x, x, heads=1, backend='native')"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "HGRN2_NATIVE": "0", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "hgru2 on cpu float32 runs on chunked: plain PyTorch on cpu; turned off by HGRN2_NATIVE=0\n"
    assert done.returncode == 1
    assert "backend native cannot serve this call: turned off by HGRN2_NATIVE=0" in done.stderr.splitlines()[-1]


def test_no_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    falls_back("no C++ compiler (g++, c++ or clang++) was found")


def test_compiler_that_fails(compiler: Fake) -> None:
    compiler("echo 'scan.cpp:1: out of luck' >&2; echo more >&2; exit 1")
    falls_back("g++ could not build the C++ kernels: scan.cpp:1: out of luck")


def test_compiler_that_fails_without_a_word(compiler: Fake) -> None:
    compiler("exit 3")
    falls_back("g++ could not build the C++ kernels: exit status 3 and no message")


def test_compiler_that_cannot_be_run(compiler: Fake, tmp_path: Path) -> None:
    compiler("exit 0")
    (tmp_path / "bin" / "g++").write_text("#!/no/such/interpreter\n")
    falls_back("g++ could not build the C++ kernels: ")


def test_compiler_that_never_ends(compiler: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 30)

    compiler("exit 0")
    monkeypatch.setattr(subprocess, "run", slow)
    falls_back("g++ could not build the C++ kernels: not done after 30 seconds")


def test_compiler_that_writes_rubbish_leaves_none_behind(compiler: Fake, fresh: Path) -> None:
    compiler('echo rubbish > "$out"')
    falls_back("g++ could not build the C++ kernels: ")
    assert list(fresh.iterdir()) == []


def test_built_once_then_found(compiler: Fake, fresh: Path, kernels: Path, tmp_path: Path) -> None:
    compiler(f'echo built >> {tmp_path}/log; /bin/cp {kernels} "$out"')
    for _ in range(2):
        build.library.cache_clear()
        library, why = build.library()
        assert library is not None
        assert why == "C++ kernels built by g++ for this processor"
    assert (tmp_path / "log").read_text() == "built\n"
    (found,) = fresh.iterdir()
    assert found.stat().st_mode & 0o077 == 0
    assert fresh.stat().st_mode & 0o077 == 0


def test_kernels_cut_short_by_a_crash_are_built_again(
    compiler: Fake, fresh: Path, kernels: Path, tmp_path: Path
) -> None:
    compiler(f'echo built >> {tmp_path}/log; /bin/cp {kernels} "$out"')
    assert build.library()[0] is not None
    (found,) = fresh.iterdir()
    whole = found.stat().st_size
    found.unlink()
    found.write_bytes(b"")
    found.chmod(0o700)
    build.library.cache_clear()
    assert build.library()[0] is not None
    assert found.stat().st_size == whole
    assert (tmp_path / "log").read_text() == "built\nbuilt\n"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_that_others_can_write_to_is_not_used(
    mode: int, compiler: Fake, fresh: Path, kernels: Path, tmp_path: Path
) -> None:
    fresh.mkdir()
    trap = tmp_path / "trap"
    compiler(f'/bin/cp {kernels} "$out"')
    assert build.library()[0] is not None
    (planted,) = fresh.iterdir()
    trap.write_bytes(planted.read_bytes())
    fresh.chmod(mode)
    before = planted.stat().st_mtime_ns
    compiler(f'/bin/cp {kernels} "$out"; echo built >> {tmp_path}/log')
    library, why = build.library()
    assert library is not None
    assert "HGRN2_CACHE must name a folder to which only this user can write" in why
    assert (tmp_path / "log").read_text() == "built\n"
    assert list(fresh.iterdir()) == [planted]
    assert planted.stat().st_mtime_ns == before


def test_a_file_that_others_can_write_to_is_not_loaded(
    compiler: Fake, fresh: Path, kernels: Path, tmp_path: Path
) -> None:
    compiler(f'echo built >> {tmp_path}/log; /bin/cp {kernels} "$out"')
    assert build.library()[0] is not None
    (found,) = fresh.iterdir()
    found.chmod(0o777)
    build.library.cache_clear()
    assert build.library()[0] is not None
    assert (tmp_path / "log").read_text() == "built\nbuilt\n"


def test_a_user_without_a_home_builds_without_keeping(
    compiler: Fake, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(f'/bin/cp {kernels} "$out"')
    for name in ("HGRN2_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    library, why = build.library()
    assert library is not None
    assert "not kept" in why


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HGRN2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "hgrn2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "hgrn2"
    monkeypatch.setenv("HGRN2_CACHE", str(tmp_path / "mine"))
    assert cache.cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_kernels_for_a_gpu_refuse_tensors_on_the_cpu(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=f"backend {kernels} cannot serve this call: .* the tensors are on cpu"):
        ops.hgru2(X, X, X, heads=2, backend=kernels)


def test_what_the_cuda_kernels_do_not_take_is_said() -> None:
    from hgrn2.ops.cuda.support import supports

    gpu = torch.device("cuda", 0)
    assert "bfloat16, not float32" in supports(gpu, torch.float32, 128, 128)[1]
    assert "64 or 128, not K = 32, V = 32" in supports(gpu, torch.bfloat16, 32, 32)[1]


def test_a_bfloat16_call_with_a_wider_gate_is_not_narrowed() -> None:
    low = X.bfloat16()
    assert widest(low, X, low) == torch.float32
