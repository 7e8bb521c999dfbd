"""What an operator or a kernel does, told by its name and by the part of the model in which it was started."""

import re

GAPS = "gaps"
"""Of a GPU: no kernel runs. Of a CPU: no operator runs, Python does."""
WHOLE = "whole step"
PARTS = (("norms", r"norm"), ("activations", r"GLU|MLP"), ("optimiser", r"^Optimizer\."))
"""Part of a model -> classes of modules, and what PyTorch calls the steps of its optimisers."""

_OWN = (
    ("scan", r"hgru2|gated_outer_scan|gated_scan|selective_scan"),
    ("convolution", r"causal_conv"),
    ("loss", r"linear_cross_entropy"),
)
"""Operators of ours, forward and backward."""
_KERNELS = (
    ("scan", r"^(small_)?(forward|backward)$|^(states|join|output_kernel|gradient|scan|scan_back|scan_chunks)$"),
    ("scan", r"^(step_kernel|mark_documents)$"),
    ("convolution", r"^convolve(_back)?$"),
    ("loss", r"^_rows_kernel$"),
)
"""Kernels of ours, by their whole names."""
_CERTAIN = (
    ("matrix products", r"^aten::(mm|addmm|bmm|baddbmm|mv|addmv|_weight_int\w+|_scaled_mm|mkldnn\w*)$"),
    ("matrix products", r"gemm|cutlass|cublas|nvjet|xmma|splitk|gemv|\bmm_|^triton_(tem|mm)"),
    ("attention", r"scaled_dot_product|flash|fmha|attention|cudnn.*sdpa"),
    ("loss", r"log_softmax|nll_loss|cross_entropy|logsumexp"),
    ("optimiser", r"adam|multi_tensor_apply|_foreach_|fused_adam"),
    ("norms", r"rms_norm|layer_norm|rsqrt"),
)
_GENERAL = (
    ("activations", r"silu|gelu|sigmoid|aten::glu|gated_unit"),
    ("embedding", r"embedding|index_?select"),
    ("choice of tokens", r"argmax|topk|sort|multinomial|cumsum|searchsorted"),
    ("copies", r"copy|aten::(cat|stack|clone|contiguous|fill_|zero_)$|memcpy|memset|catarray|fillfunctor"),
)
_NO_WORK = re.compile(
    r"^autograd::|Backward\d*$|^aten::(t|to|view|_unsafe_view|as_strided|transpose|permute|expand|slice|select|split\w*|"
    r"chunk|narrow|unbind|squeeze|unsqueeze|reshape|detach|alias|empty\w*|new_\w+|resolve_\w+|linear|matmul|item|"
    r"_local_scalar_dense|result_type|lift_fresh|is_\w+|dropout|conj|unflatten|flatten|\w+_like)$|^detach$|^cuda[A-Z]|^cu[A-Z]"
)


def part_of(name: str) -> str:
    """The part of the model that a module's class or an annotation of PyTorch's stands for, or nothing."""
    return next((part for part, pattern in PARTS if re.search(pattern, name, re.IGNORECASE)), "")


def group_of(name: str, part: str = "") -> str:
    """The group of an operator or kernel: what its name says for certain, then the part, then what its name suggests.

    Operators that only arrange for others (views, allocation, nodes of autograd) are "dispatch".
    """
    found = _first(_OWN, name) or _first(_KERNELS, name) or _first(_CERTAIN, name)
    if found:
        return found
    if _NO_WORK.search(name):
        return "dispatch"
    if part in ("norms", "optimiser", "loss"):
        return part
    return _first(_GENERAL, name) or part or "other"


def _first(rules: tuple[tuple[str, str], ...], name: str) -> str:
    return next((group for group, pattern in rules if re.search(pattern, name, re.IGNORECASE)), "")
