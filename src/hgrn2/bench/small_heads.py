"""Which form of the mixing core is quicker for small heads: `python -m hgrn2.bench.small_heads --out results`.

One row a form, head size and shape: milliseconds of forward and backward, of forms that take turns, after all gave the
same numbers. `ops/hgru2/elementwise.py` takes its rule from these rows. With `--device cuda` inputs are bfloat16,
shapes fill a large GPU, and the outer form is measured twice, as the walk of the CUDA kernels for small heads and in
chunks on Triton. `--sizes`, `--shapes` and `--forms` ask for others.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hgrn2 import ops
from hgrn2.bench.settings import Limits
from hgrn2.bench.timing import Sample, interleave, prepare_process, sample_of
from hgrn2.errors import UserError
from hgrn2.ops.backend import choose
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, append, measurement, prepare_folder

Shape = tuple[int, int, int]
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((4, 1024, 120), (128, 32, 120)),
    "cuda": ((32, 2048, 96), (2048, 32, 480)),
}
"""B, T, D: few long sequences, and the rows of pictures of 32 x 32; widths divide by every n of interest."""
HEAD_SIZES = {"cpu": (1, 2, 3, 4, 5, 6, 8, 10, 12, 15), "cuda": (1, 2, 3, 4, 6, 8, 12, 16)}
EPSILONS = {torch.float32: 100, torch.bfloat16: 8}
"""By which the two forms may differ, norm-wise. On a GPU the outer form rounds operands of products to bfloat16, and
the gradient of γ, a sum over all tokens, was seen to lose three epsilons by that; a wrong form is off by far more."""
Form = Callable[..., tuple[Tensor, Tensor | None]]
FORMS = {"outer": "", "element-wise": "elementwise"}
"""What rows call them, and their backends; none for the one that `auto` takes for larger heads."""
GPU_FORMS = {"walk": "cuda", "outer": "triton", "element-wise": "elementwise"}


def form_of(name: str, device: str) -> partial[tuple[Tensor, Tensor | None]]:
    """The operator on the backend of this form."""
    backend = (GPU_FORMS if device == "cuda" else FORMS)[name]
    return partial(ops.hgru2, backend=backend or choose(torch.device(device), keys=16, values=16).backend)


def measure(
    shapes: tuple[Shape, ...], sizes: tuple[int, ...], device: str, limits: Limits,
    record: Callable[[Row], None], progress: Progress = silent, forms: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Time the forms (none named: all of the device) in every shape and head size, and hand over a row each."""
    chosen = {name: form_of(name, device) for name in forms or (GPU_FORMS if device == "cuda" else FORMS)}
    conditions = prepare_process(limits)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for batch, length, width in shapes:
        for n in sizes:
            inputs = _problem(batch, length, width, device, dtype)
            _check_equal(inputs, width // n, chosen)
            samples = {name: _sample(form, inputs, width // n, device) for name, form in chosen.items()}
            case = {"shape": f"{batch},{length},{width}", "n": n, "device": device}
            taken = interleave(samples, limits, f"B {batch}, T {length}, n {n}", progress)
            for form, seconds in taken.items():
                backend = _backend(form, inputs[0])
                milliseconds = [1e3 * s for s in seconds]
                record(measurement("small_heads", case, form, backend, milliseconds, "ms", conditions))


def _problem(batch: int, length: int, width: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, length, width, generator=generator).to(device, dtype) for _ in range(3)]
    made.append(torch.full((width,), 0.5, device=device))
    return [x.requires_grad_() for x in made]


def _backend(form: str, x: Tensor) -> str:
    """On which kernels it comes down to."""
    if form == "element-wise":
        return choose(x.device, op="gated_scan", dtype=torch.float32).backend
    return form_of(form, x.device.type).keywords["backend"]


def _run(form: Form, inputs: list[Tensor], heads: int) -> list[Tensor]:
    """o and the gradients of all inputs; what arrives at o is dense and of both signs, as in training."""
    o, _ = form(*inputs, heads=heads, output_final_state=False)
    return [o.detach(), *torch.autograd.grad(o, inputs, inputs[1].detach())]


def _sample(form: Form, inputs: list[Tensor], heads: int, device: str) -> Sample:
    return sample_of(lambda: _run(form, inputs, heads), device)


def _check_equal(inputs: list[Tensor], heads: int, forms: dict[str, Form]) -> None:
    """No time of a form that computes something else."""
    found = [_run(form, inputs, heads) for form in forms.values()]
    dtype = inputs[0].dtype
    allowed = EPSILONS[dtype] * torch.finfo(dtype).eps
    for other in found[:-1]:
        for a, b in zip(other, found[-1], strict=True):
            if not float((a.float() - b.float()).norm()) <= allowed * float(b.float().norm()):
                raise UserError(f"the forms disagree with {heads} heads; nothing was recorded")


def shape_of(text: str) -> Shape:
    """`B,T,D` as three numbers of at least 1."""
    try:
        batch, length, width = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--shapes takes B,T,D, three whole numbers each, not {text!r}") from None
    if min(batch, length, width) < 1:
        raise UserError(f"--shapes takes numbers of at least 1, not {text!r}")
    return batch, length, width


def _check_asked(shapes: tuple[Shape, ...], sizes: tuple[int, ...], device: str) -> None:
    """Refuse, before anything is measured, what cannot be measured."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here")
    for n in sizes:
        wrong = [width for _, _, width in shapes if n < 1 or width % n]
        if wrong:
            raise UserError(f"--sizes: heads of {n} channels do not divide a width of {wrong[0]}")


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, append rows; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m hgrn2.bench.small_heads", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the rows")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="head sizes, instead of the device's")
    parser.add_argument("--shapes", nargs="+", metavar="B,T,D", help="shapes, instead of the device's")
    parser.add_argument("--forms", nargs="+", metavar="NAME", default=(), help="forms, instead of all of the device")
    options = parser.parse_args(arguments)
    try:
        device = options.device
        for name in options.forms:
            known = GPU_FORMS if device == "cuda" else FORMS
            if name not in known:
                raise UserError(f"--forms: there is no form {name!r} on {device} (choose from {', '.join(known)})")
        shapes = tuple(shape_of(x) for x in options.shapes) if options.shapes else SHAPES[device]
        sizes = tuple(options.sizes) if options.sizes else HEAD_SIZES[device]
        _check_asked(shapes, sizes, device)
        prepare_folder(options.out)
        limits = Limits(threads=options.threads, repeats=options.repeats)

        def record(row: Row) -> None:
            append(options.out, row)
            case = row.case
            print(f"{case['shape']:>12}  n {case['n']:>2}  {row.subject:<12} {row.backend:<8} {row.median:8.2f} ms")

        measure(shapes, sizes, device, limits, record, forms=tuple(options.forms))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
