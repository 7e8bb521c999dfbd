"""The public surface: what users and outside checks call, and what stays out of a plain import."""

import inspect
import subprocess
import sys

import hgrn2


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_lazy() -> None:
    loaded = run(
        "import sys, hgrn2; print([m for m in ('torch', 'numpy', 'transformers', 'triton') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_help_loads_no_torch() -> None:
    for verb in (
        "",
        "train",
        "train lm",
        "eval",
        "data",
        "data prepare",
        "generate",
        "bench ops",
        "bench train",
        "bench decode",
        "bench profile",
        "doctor",
        "convert fla",
    ):
        arguments = [*verb.split(), "--help"]
        parts = ("import sys", "from hgrn2.cli.main import entry", f"assert entry({arguments!r}) == 0")
        run("\n".join((*parts, "assert 'torch' not in sys.modules")))


def test_names_resolve() -> None:
    for name in hgrn2.__all__:
        assert getattr(hgrn2, name) is not None
    assert set(hgrn2.__all__) <= set(dir(hgrn2))


def signature(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_signatures_of_the_operators() -> None:
    common = ["state", "cu_seqlens", "reverse"]
    assert signature(hgrn2.ops.hgru2) == [
        "q", "f", "i", "lower_bound", "heads", *common, "input_activation", "output_activation", "scale",
        "output_final_state", "backend",
    ]  # fmt: skip
    assert signature(hgrn2.ops.gated_outer_scan) == [
        "q", "k", "v", "log_f", *common, "scale", "output_final_state", "backend",
    ]  # fmt: skip
    assert signature(hgrn2.ops.gated_scan) == ["x", "f", *common, "output_final_state", "backend"]
    assert signature(hgrn2.ops.hgru2_step)[:8] == ["q", "f", "i", "lower_bound", "heads", "state", "slots", "inplace"]
    assert callable(hgrn2.ops.gated_outer_step)
    assert callable(hgrn2.ops.gated_step)
    assert callable(hgrn2.ops.explain)


def test_every_verb_has_an_example() -> None:
    from importlib import import_module

    from hgrn2.cli.main import VERBS

    for _, tasks in VERBS.values():
        for place in tasks.values():
            module, _, kind = place.partition(":")
            assert "Example: hgrn2 " in (getattr(import_module(f"hgrn2.cli.{module}"), kind).__doc__ or "")
