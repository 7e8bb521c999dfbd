"""The one place that chooses a backend, and can explain its choice.

Backends, in the order in which `auto` prefers them:
    cuda       CUDA C++ compiled for this GPU; hgru2 with heads of 64 or 128 in bfloat16, and with heads of 1 to 16, of
               which few long sequences go on to triton
    triton     Triton kernels, every operator; CUDA tensors (CPU tensors only in Triton's interpreter, by name)
    native     C++ compiled for this machine's processor; CPU tensors
    chunked    plain PyTorch, any device, any dtype
    reference  the loop over tokens, differentiated by autograd; chosen only by name
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from hgrn2.errors import UserError
from hgrn2.ops.cuda.support import SMALL, processors, too_few
from hgrn2.settings import shown

NAMES = ("cuda", "triton", "native", "chunked", "reference")


Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_compiled(function: Function) -> Function:
    """`torch.compiler.assume_constant_result` without the two seconds for which that imports the compiler.

    A compiled graph holds what the function returned while the graph was made; its calls are not traced.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Choice(NamedTuple):
    """A backend and the reason for it, as a sentence."""

    backend: str
    why: str


@constant_when_compiled  # torch.compile asks once instead of tracing the build of the kernels
def _support(backend: str, op: str, device: torch.device, dtype: torch.dtype, keys: int, values: int) -> Choice:
    """Choice(backend, why) where it can serve, Choice("", why not) elsewhere."""
    if backend == "native":
        able, why = _native_support(device)
    elif backend == "cuda":
        from hgrn2.ops.cuda.support import supports

        able, why = supports(op, device, dtype, keys, values)
    else:
        from hgrn2.ops.triton_support import supports as triton_supports

        able, why = triton_supports(op, device, dtype, keys, values)
    return Choice(backend if able else "", why)


def _native_support(device: torch.device) -> tuple[bool, str]:
    if device.type != "cpu":
        return False, f"native runs on the CPU, the tensors are on {device.type}"
    from hgrn2.ops.native.build import library

    kernels, why = library()
    return kernels is not None, why


@constant_when_compiled  # reads a file the first time
def doubt_of(op: str, backend: str, device: torch.device) -> str:
    """Why doctor says that a backend must not be used for an operator here; empty where it does not."""
    from hgrn2.ops.distrust import reason

    return reason(op, backend, device)


def choose(
    device: torch.device,
    backend: str = "auto",
    *,
    op: str = "hgru2",
    dtype: torch.dtype = torch.float32,
    keys: int = 0,
    values: int = 0,
    batch: tuple[int, int, int] | None = None,
    forward_mode: bool = False,
) -> Choice:
    """Resolve a request: a backend named that cannot serve is a `UserError`; `auto` falls back and says why.

    keys and values are the channels of one head (0 for operators without heads); batch is how many sequences of at most
    how many tokens and heads there are, where the choice may depend on it. forward_mode: see `has_tangents`.
    """
    if not isinstance(backend, str):
        raise UserError(f"backend is {shown(backend)}; choose auto, {', '.join(NAMES)}")
    if forward_mode and backend == "auto":
        return Choice("reference", f"{FORWARD_MODE} the reference alone")
    if forward_mode and backend in NAMES and backend != "reference":
        raise UserError(f"backend {backend} cannot serve this call: {FORWARD_MODE} backend='reference' alone")
    if backend == "auto":
        reasons, slow = [], None
        for name in ("cuda", "triton") if device.type == "cuda" else ("native",):
            choice = _support(name, op, device, dtype, keys, values)
            doubt = doubt_of(op, name, device) if choice.backend else choice.why
            if not doubt and name == "cuda" and batch is not None and _few(batch, keys, device):
                slow, doubt = choice, "few long sequences of small heads are faster in chunks"
            if not doubt and name == "native" and batch is not None and _idle(batch, keys * values):
                doubt = f"{_threads()} threads compute few states of {keys} x {values} sooner in chunks"
            if not doubt:
                return Choice(name, "; ".join([choice.why, *reasons]))
            reasons.append(doubt)
        if slow is not None:
            return Choice("cuda", "; ".join([slow.why, *reasons]))
        if doubt := doubt_of(op, "chunked", device):
            return Choice("reference", "; ".join([doubt, *reasons]))
        return Choice("chunked", f"plain PyTorch on {device.type}; {'; '.join(reasons)}")
    if backend not in NAMES:
        raise UserError(f"backend {backend!r} is unknown; choose auto, {', '.join(NAMES)}")
    if backend in ("chunked", "reference"):
        return Choice(backend, "asked for by name")
    choice = _support(backend, op, device, dtype, keys, values)
    if not choice.backend:
        raise UserError(f"backend {backend} cannot serve this call: {choice.why}")
    return choice


def _few(batch: tuple[int, int, int], size: int, device: torch.device) -> bool:
    sequences, tokens, heads = batch
    return 0 < size <= SMALL and too_few(sequences, tokens, heads, size, _processors(device))


def _idle(batch: tuple[int, int, int], state: int) -> bool:
    """Whether native would leave so many threads idle that plain PyTorch is sooner done.

    Native has a thread for each sequence and head. On two cores with AVX2, forward and backward of one sequence with
    one head take 35 ms against 38 with states of 128 x 128 and 297 against 133 with 512 x 512; with 256 x 256 the bound
    decides.
    """
    sequences, tokens, heads = batch
    threads = _threads()
    if (
        state * threads**2 <= 512**2
    ):  # not even for one state; asked first so that compiled code is not bound to a shape
        return False
    return tokens >= 512 and state * threads**2 > (512 * sequences * heads) ** 2


@constant_when_compiled
def _threads() -> int:
    return torch.get_num_threads()


@constant_when_compiled
def _processors(device: torch.device) -> int:
    return processors(device)


def choose_step(
    x: Tensor, state: Tensor, backend: str = "auto", *, keys: int = 0, values: int = 0, forward_mode: bool = False
) -> Choice:
    """Resolve a request for one token of `hgru2`; native keeps states in the working dtype of the input x only."""
    if isinstance(backend, str) and backend == "cuda":
        raise UserError("backend cuda cannot serve this call: one token runs on triton")
    if forward_mode and isinstance(backend, str) and backend in ("auto", "chunked"):  # plain PyTorch, as the reference
        backend = "reference"
    wanted = work_dtype(x.dtype)
    options = {"keys": keys, "values": values, "forward_mode": forward_mode}
    choice = choose(x.device, backend, op="hgru2_step", dtype=x.dtype, **options)
    if choice.backend != "native" or state.dtype == wanted:
        return choice
    why = f"native steps keep the state in {wanted}, this one is {state.dtype}"
    if backend == "native":
        raise UserError(f"backend native cannot serve this call: {why}")
    return Choice("chunked", f"plain PyTorch on {x.device.type}; {why}")


FORWARD_MODE = "forward-mode derivatives (jvp, jacfwd, linearize, dual numbers) are computed by"


def has_tangents(*tensors: Tensor | None) -> bool:
    """Whether a forward-mode derivative is under way in one of these tensors, of which a kernel would know nothing.

    Of a tensor that `vmap` has split inside of `jvp` PyTorch cannot say so: it counts as one that has.
    """
    try:
        return any(x is not None and unpack_dual(x).tangent is not None for x in tensors)
    except RuntimeError:
        return True


def check_floating(**tensors: Tensor | None) -> None:
    """Refuse integers and complex numbers."""
    for name, x in tensors.items():
        if x is not None and not (x.is_floating_point() and x.itemsize > 1):
            raise UserError(f"{name} must hold real floating-point numbers, not {x.dtype}")


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast leaves matrix products alone: states and sums keep the working dtype."""
    return torch.autocast(device.type, enabled=False)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """States, gates and sums: float64 stays float64, everything narrower works in float32 (complex likewise)."""
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest(*tensors: Tensor) -> torch.dtype:
    """The dtype in which all of them are exact: a kernel that takes bfloat16 must not be given a float32 gate."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
