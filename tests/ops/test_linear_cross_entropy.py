"""Head and loss in one operator: PyTorch's two functions are the reference, whatever the chunks and the backend."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from hgrn2.errors import UserError
from hgrn2.ops.linear_cross_entropy import aligned, chunked, linear_cross_entropy

GPU = torch.cuda.is_available()  # without one, Triton's interpreter runs the kernel
DEVICE = torch.device("cuda" if GPU else "cpu")
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def draw() -> Callable[..., Inputs]:
    """hidden [2,T,5], weight [V,5], targets [2,T] with two that do not count; of one seed."""

    def make(classes: int = 11, tokens: int = 19, dtype: torch.dtype = torch.float64) -> Inputs:
        generator = torch.Generator().manual_seed(3)
        hidden = torch.randn(2, tokens, 5, generator=generator, dtype=torch.float64)
        weight = torch.randn(classes, 5, generator=generator, dtype=torch.float64)
        targets = torch.randint(classes, (2, tokens), generator=generator)
        targets[1, 2:4] = -100
        leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (hidden, weight)]
        return leaves[0], leaves[1], targets.to(DEVICE)

    return make


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen tokens per chunk, the last one cut short."""
    monkeypatch.setattr(chunked, "chunk_tokens", lambda *arguments: 16)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, **options: float) -> Tensor:
    return cross_entropy(linear(hidden, weight).flatten(0, -2), targets.flatten(), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [1, 11, 5000])
def test_equals_its_two_parts(draw: Callable[..., Inputs], small_chunks: None, classes: int, smoothing: float) -> None:
    hidden, weight, targets = draw(classes)
    mine = linear_cross_entropy(hidden, weight, targets, label_smoothing=smoothing)
    expected = plain(hidden, weight, targets, label_smoothing=smoothing)
    torch.testing.assert_close(mine, expected)
    for found, wanted in zip(
        torch.autograd.grad(3 * mine, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_gradients_by_differences(draw: Callable[..., Inputs], small_chunks: None) -> None:
    hidden, weight, targets = draw()
    loss = partial(linear_cross_entropy, targets=targets, label_smoothing=0.2)
    assert torch.autograd.gradcheck(lambda hidden, weight: loss(hidden, weight), (hidden, weight))


def test_another_index_is_ignored(draw: Callable[..., Inputs]) -> None:
    hidden, weight, targets = draw()
    targets = targets.where(targets >= 0, 7)
    mine = linear_cross_entropy(hidden, weight, targets, ignore_index=7)
    torch.testing.assert_close(mine, plain(hidden, weight, targets, ignore_index=7))


def test_where_nothing_counts_gradients_are_zero(draw: Callable[..., Inputs]) -> None:
    hidden, weight, targets = draw()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    assert loss.isnan()  # as PyTorch's
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_second_backward_gives_the_same(draw: Callable[..., Inputs]) -> None:
    hidden, weight, targets = draw()
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(loss, (hidden, weight)), strict=True):
        assert torch.equal(one, two)


def test_no_gradients_are_made_when_none_are_wanted(
    draw: Callable[..., Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = draw()
    asked: list[bool] = []
    rows = chunked.rows
    monkeypatch.setattr(chunked, "rows", lambda *arguments: asked.append(arguments[-1]) or rows(*arguments))
    with torch.no_grad():
        quiet = linear_cross_entropy(hidden, weight, targets)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert asked == [False, True]
    assert torch.equal(quiet, loss.detach())


def test_autocast_decides_the_product_and_float32_the_sums(draw: Callable[..., Inputs]) -> None:
    hidden, weight, targets = draw(classes=40, dtype=torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        mine = linear_cross_entropy(hidden, weight, targets, backend="chunked")
        expected = cross_entropy(linear(hidden, weight).float().flatten(0, 1), targets.flatten())
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, expected)
    for found, wanted in zip(
        torch.autograd.grad(mine, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=2**-6, atol=2**-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights(draw: Callable[..., Inputs], dtype: torch.dtype) -> None:
    hidden, weight, targets = draw(classes=300, dtype=dtype)
    mine = linear_cross_entropy(hidden, weight, targets, backend="chunked")
    double = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = plain(double[0], double[1], targets)
    torch.testing.assert_close(mine.double(), expected, rtol=torch.finfo(dtype).eps, atol=0.0)
    for found, wanted in zip(
        torch.autograd.grad(mine, (hidden, weight)), torch.autograd.grad(expected, double), strict=True
    ):
        assert found.dtype == dtype
        error = float((found.double() - wanted).norm() / wanted.norm())
        assert error < 4 * torch.finfo(dtype).eps


def test_the_operator_is_registered_soundly(draw: Callable[..., Inputs]) -> None:
    hidden, weight, targets = draw(dtype=torch.float32)
    rows = hidden.detach().flatten(0, 1).requires_grad_()
    arguments = (rows, weight, targets.flatten(), -100, 0.1, torch.float32, True, "chunked")
    torch.library.opcheck(torch.ops.hgrn2.linear_cross_entropy.default, arguments)


def test_one_graph_under_compile(draw: Callable[..., Inputs]) -> None:
    hidden, weight, targets = draw(dtype=torch.float32)
    call = partial(linear_cross_entropy, targets=targets)
    compiled = torch.compile(lambda hidden, weight: call(2 * hidden, weight), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(hidden, weight), (hidden, weight))
    wanted = torch.autograd.grad(call(2 * hidden, weight), (hidden, weight))
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


def test_chunks_are_bounded() -> None:
    assert chunked.chunk_tokens(32_000, torch.bfloat16) == 4096
    assert chunked.chunk_tokens(32_000, torch.float32) == 2048
    assert chunked.chunk_tokens(10**9, torch.float32) == 16
    for classes in (100, 50_257, 151_936):
        assert chunked.chunk_tokens(classes, torch.bfloat16) * classes * 2 <= chunked.CHUNK_BYTES


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [3, 4096, 4097, 9000])
def test_the_kernel_equals_the_plain_form(classes: int, smoothing: float) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from hgrn2.ops.linear_cross_entropy import triton

    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(5, classes + 3, generator=generator)).to(DEVICE)[:, :classes]
    targets = torch.tensor([0, classes - 1, -100, 1, 2]).to(DEVICE)
    mine, theirs = logits.clone(), logits.clone()
    torch.testing.assert_close(
        triton.rows(mine, targets, -100, smoothing, True), chunked.rows(theirs, targets, -100, smoothing, True)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    kept = logits.clone()
    triton.rows(kept, targets, -100, smoothing, False)
    assert torch.equal(kept, logits)


def test_the_kernel_does_not_take_a_wrong_target_for_a_good_one() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from hgrn2.ops.linear_cross_entropy import triton

    losses = triton.rows(torch.zeros(3, 10, device=DEVICE), torch.tensor([10, -1, 9]).to(DEVICE), -100, 0.0, True)
    assert losses.isnan().tolist() == [True, True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_whole_on_a_gpu(dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(3, 3001, 64, generator=generator, device=DEVICE).to(dtype).requires_grad_()
    weight = torch.randn(32_000, 64, generator=generator, device=DEVICE).mul(0.3).to(dtype).requires_grad_()
    targets = torch.randint(32_000, (3, 3001), generator=generator, device=DEVICE)
    targets[0, :100] = -100
    mine = linear_cross_entropy(hidden, weight, targets)
    double = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = plain(double[0], double[1], targets)
    eps = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(mine.double(), expected, rtol=eps, atol=0.0)
    for found, wanted in zip(
        torch.autograd.grad(mine, (hidden, weight)), torch.autograd.grad(expected, double), strict=True
    ):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 4 * eps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, t: (h[..., :4], w, t), "weight [V,D]; got [2, 19, 4] and [11, 5]"),
        (lambda h, w, t: (h, w, t[:, :7]), "targets must be [2, 19] int64; got [2, 7] int64"),
        (lambda h, w, t: (h, w, t.int()), "got [2, 19] int32"),
        (lambda h, w, t: (h, w.long(), t), "real floating-point"),
    ],
)
def test_bad_input(draw: Callable[..., Inputs], change: Callable[..., Inputs], message: str) -> None:
    with pytest.raises(UserError) as error:
        linear_cross_entropy(*change(*draw()))
    assert message in str(error.value)


def test_bad_options(draw: Callable[..., Inputs]) -> None:
    with pytest.raises(UserError, match=r"label_smoothing is 1; it must be in \[0, 1\)"):
        linear_cross_entropy(*draw(), label_smoothing=1)
    with pytest.raises(UserError, match="native has no kernel for linear_cross_entropy"):
        linear_cross_entropy(*draw(), backend="native")
    with pytest.raises(UserError, match="backend triton cannot serve this call: triton computes in float32 at most"):
        linear_cross_entropy(*draw(), backend="triton")
    with pytest.raises(UserError, match=r"ignore_index is 2\.5; it must be a whole number"):
        linear_cross_entropy(*draw(), ignore_index=2.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"targets must be a tensor, not numpy\.ndarray"):
        linear_cross_entropy(*draw()[:2], draw()[2].numpy())  # type: ignore[arg-type]
    if not GPU:
        with pytest.raises(UserError, match="target 11 is outside the vocabulary of 11"):
            linear_cross_entropy(*draw()[:2], torch.full((2, 19), 11))


@pytest.fixture
def multiples_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every device, as on a GPU."""
    monkeypatch.setattr(aligned, "MULTIPLE", {"cpu": 64, "cuda": 64})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [1, 11, 64, 129])
def test_zeros_behind_the_vocabulary_change_nothing(
    draw: Callable[..., Inputs], small_chunks: None, multiples_of_64: None, classes: int, smoothing: float
) -> None:
    """Products of 64, 64, 64 and 192 classes; loss and both gradients are those of the real ones."""
    hidden, weight, targets = draw(classes)
    assert aligned.padded(weight, torch.float64).shape[0] == -(-classes // 64) * 64
    mine = linear_cross_entropy(hidden, weight, targets, label_smoothing=smoothing)
    expected = plain(hidden, weight, targets, label_smoothing=smoothing)
    torch.testing.assert_close(mine, expected)
    for found, wanted in zip(
        torch.autograd.grad(mine, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert found.shape == wanted.shape
        assert found.is_contiguous()
        torch.testing.assert_close(found, wanted)


def test_a_token_that_does_not_count_may_be_infinite(
    draw: Callable[..., Inputs], small_chunks: None, multiples_of_64: None
) -> None:
    """Its product with the zeros is NaN, and must reach no gradient."""
    hidden, weight, targets = draw()
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    hidden.data[1, 2] = torch.inf
    found = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)[0]
    assert not found[1, 2].any()
    torch.testing.assert_close(found, expected[0])


@pytest.mark.skipif(GPU, reason="the interpreter on a CPU, where the kernel reads rows with a stride")
def test_the_kernel_sees_the_real_classes_alone(draw: Callable[..., Inputs], multiples_of_64: None) -> None:
    hidden, weight, targets = draw(classes=70, dtype=torch.float32)
    found = linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, backend="triton")
    expected = plain(hidden, weight, targets, label_smoothing=0.1)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_logits_are_those_of_the_plain_product(
    draw: Callable[..., Inputs], multiples_of_64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, _ = draw(classes=70)
    assert not aligned.pays(hidden, 70)
    monkeypatch.setattr(aligned, "FEWEST", 38)
    assert aligned.pays(hidden, 70)
    assert not aligned.pays(hidden, 128)
    found, expected = aligned.logits(hidden, weight), linear(hidden, weight)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), (hidden, weight)),
        torch.autograd.grad(expected.square().sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    with torch.autocast(hidden.device.type, torch.bfloat16):
        single = hidden.float(), weight.float()
        torch.testing.assert_close(aligned.logits(*single), linear(*single))
