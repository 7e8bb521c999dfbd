"""What a backend is, the registry of all of them, and the one place that chooses.

A backend is a value: one `Backend` for each way to compute an operator, defined in the operator's folder and listed
there, in the order in which `auto` prefers them, by `register`. Doctor, benchmarks, `explain`, the list of known-bad
kernels and the contracts of `hgrn2.testing` iterate over `REGISTRY` and ask these values; nothing else names backends:
    cuda         CUDA C++ compiled for this GPU; hgru2 alone
    triton       Triton kernels; CUDA tensors (CPU tensors only in Triton's interpreter, by name)
    elementwise  hgru2 with tiny heads as a scan of single numbers; CPU tensors (others by name)
    native       C++ compiled for this machine's processor; CPU tensors
    chunked      plain PyTorch, any device, any dtype
    reference    the loop over tokens, differentiated by autograd; the float64 reference of all others
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from hgrn2.errors import UserError
from hgrn2.settings import shown

Function = TypeVar("Function", bound=Callable[..., Any])


class Batch(NamedTuple):
    """What of a batch decides which backend is quicker; a tuple of its first three will do."""

    sequences: int
    tokens: int
    """Of the longest."""
    heads: int
    bounded: bool = False
    """The lower bounds are known to allow one product per chunk; asked only where it matters."""


def constant_when_compiled(function: Function) -> Function:
    """`torch.compiler.assume_constant_result` without the two seconds for which that imports the compiler.

    A compiled graph holds what the function returned while the graph was made; its calls are not traced.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Call(NamedTuple):
    """What of a call decides whether a backend can serve it."""

    op: str
    """The public function, a step included."""
    device: torch.device
    dtype: torch.dtype
    keys: int = 0
    """Channels of a head, K; 0 for operators without heads."""
    values: int = 0
    """V."""
    state: torch.dtype | None = None
    """Of a step's state."""


class Backend:
    """One way to compute one operator. A subclass says what differs from plain PyTorch that serves every call.

    `forward` takes what the operator's registration.py hands it, its options as values; `backward` the same and the
    incoming gradients; `step` one token, and changes the state given. Objects hold nothing: a name in a traced graph
    stands for the same computation everywhere.
    """

    name: ClassVar[str]
    """What `backend=` takes."""
    plain: ClassVar[bool] = False
    """Plain PyTorch, there for want of kernels."""
    composed: ClassVar[bool] = False
    """`forward` is made of differentiable operations: autograd finds its gradients, `backward` is not needed."""
    compiles: ClassVar[bool] = False
    """Kernels are compiled at the first call, which takes seconds."""
    better_than_plain: ClassVar[bool] = False
    """Also in calls for which `slow` has a reason."""
    optional_grad_state: ClassVar[bool] = False
    """`backward` takes None for the gradient of a final state that was not used; others are given zeros."""
    forward: Any
    backward: Any
    step: Any = None

    def supports(self, call: Call) -> tuple[bool, str]:
        """Whether it can serve a call, and a sentence about it. Imports no kernels."""
        if len(REGISTRY[call.op]) == 1:
            return True, "one token needs no kernel of its own"
        return True, f"plain PyTorch on {call.device.type}"

    def auto(self, call: Call) -> bool:
        """Whether `auto` asks it at all; where it does not, nothing is said of this backend."""
        return True

    def slow(self, device: torch.device, keys: int, values: int, batch: Batch) -> str:
        """Why `auto` should leave a batch of such a shape to backends further down the list; empty where it need not.

        Traced by torch.compile, sizes may be symbols: a shape that does not matter must not be asked for.
        """
        return ""

    def tangents(self, op: str) -> bool:
        """Whether it computes forward-mode derivatives of this operator."""
        return False

    def examined(self, call: Call) -> bool:
        """Whether `hgrn2 doctor` checks it in such calls: all that `auto` may choose."""
        return self.auto(call)

    def timed(self, call: Call) -> bool:
        """Whether `hgrn2 bench ops` times it where no backend is named."""
        return self.auto(call)

    def one_product(self, lower_bound: Tensor | None) -> bool:
        """Whether it may compute a chunk with such lower bounds in one product, whose rounding the contracts allow
        for."""
        return False

    def place(self) -> dict[str, str]:
        """What its results depend on besides inputs, device, hgrn2, torch and CUDA; see `known_bad`."""
        return {}


class Reference(Backend):
    """The loop over tokens. `auto` comes to it only where all others are known to be bad here."""

    name, plain, composed = "reference", True, True

    def tangents(self, op: str) -> bool:
        """All of them."""
        return True

    def examined(self, call: Call) -> bool:
        """Never: all others are compared with it."""
        return False

    def timed(self, call: Call) -> bool:
        """Not on a GPU, and not in 16 bits: its states are as narrow as its inputs."""
        return call.device.type == "cpu" and call.dtype == torch.float32


REGISTRY: dict[str, tuple[Backend, ...]] = {}
"""Every operator and every step with its backends, in the order in which `auto` prefers them."""
STEPS: dict[str, str] = {}
"""Operator -> its step of one token."""


def register(op: str, backends: tuple[Backend, ...], step: str = "") -> None:
    """The backends of an operator; those with a `step` serve its step too."""
    REGISTRY[op] = backends
    _asked.cache_clear()
    if step:
        STEPS[op] = step
        REGISTRY[step] = tuple(one for one in backends if one.step is not None)


def find(op: str, name: str) -> Backend:
    """The backend of this name."""
    for one in REGISTRY[op]:
        if one.name == name:
            return one
    raise KeyError(f"{op} has no backend {name}")


def names(*ops: str) -> tuple[str, ...]:
    """Names of the backends of these operators (none given: of all)."""
    return tuple(dict.fromkeys(one.name for op in ops or REGISTRY for one in REGISTRY[op]))


class Choice(NamedTuple):
    """A backend and the reason for it, as a sentence."""

    backend: str
    why: str


@functools.lru_cache(1024)  # at every call of an operator
def _asked(call: Call) -> tuple[str, ...]:
    return tuple(one.name for one in REGISTRY[call.op] if one.auto(call))


@constant_when_compiled
def _asked_names(*call: Any) -> tuple[str, ...]:
    return _asked(Call(*call))


@constant_when_compiled  # torch.compile asks once instead of tracing the build of the kernels
def _support(auto: bool, name: str, *what: Any) -> tuple[bool, str]:
    """As `Backend.supports` of a `Call`; for `auto` also no where doctor has found the kernel bad."""
    call = Call(*what)
    one = find(call.op, name)
    able, why = one.supports(call)
    if able and auto:
        from hgrn2.ops.known_bad import reason

        bad = reason(call.op, one, call.device)
        return not bad, bad or why
    return able, why


def choose(
    device: torch.device,
    backend: str = "auto",
    *,
    op: str = "hgru2",
    dtype: torch.dtype = torch.float32,
    keys: int = 0,
    values: int = 0,
    batch: Batch | tuple[int, int, int] | None = None,
    state: torch.dtype | None = None,
    forward_mode: bool = False,
) -> Choice:
    """Resolve a request: a backend named that cannot serve is a `UserError`; `auto` falls back and says why.

    batch is given where the choice may depend on it; for the rest see `Call`. forward_mode: see `has_tangents`.
    """
    if not isinstance(backend, str):
        raise UserError(f"backend is {shown(backend)}; choose auto, {', '.join(names(op))}")
    call = (op, device, dtype, keys, values, state)
    if backend != "auto":
        return _named(backend, forward_mode, *call)
    if forward_mode:
        return Choice("reference", f"{FORWARD_MODE} the reference alone")
    known = batch if batch is None or isinstance(batch, Batch) else Batch(*batch)
    reasons, slow = [], None
    for name in _asked_names(*call):
        one = find(op, name)
        if slow is not None and one.plain:
            return Choice(slow.backend, "; ".join([slow.why, *reasons]))
        able, why = _support(True, name, *call)
        against = "" if not able or known is None else one.slow(device, keys, values, known)
        if able and not against:
            return Choice(name, "; ".join([why, *reasons]))
        if able and one.better_than_plain:
            slow = Choice(name, why)
        if against or why:
            reasons.append(against or why)
    return Choice(REGISTRY[op][-1].name, "; ".join(reasons))


def _named(name: str, forward_mode: bool, op: str, *rest: Any) -> Choice:
    for one in REGISTRY[op]:
        if one.name == name:
            able, why = _support(False, name, op, *rest)
            if forward_mode and not one.tangents(op):
                able, why = False, f"{FORWARD_MODE} backend='reference' alone"
            if not able:
                raise UserError(f"backend {name} cannot serve this call: {why}")
            return Choice(name, "asked for by name" if one.plain else why)
    if name in names():
        raise UserError(f"backend {name} cannot serve this call: {name} has no kernel for {op}")
    raise UserError(f"backend {shown(name)} is unknown; choose auto, {', '.join(names(op))}")


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
