"""The language model as a graph on the operator LinearAttention, whose rule "gated" is HGRU2's recurrence.

    tokens [B,T], past.N.recurrent [B,H,K,V], past.N.conv [B,W-1,3D]  ->  logits [B,T',V], present.N.*

One graph reads prompts and makes steps: B and T are free. With `gates` there are outputs gates.N [B,H] besides: ln f
summed over the tokens of the call, mean over the channels of a head. The logits are those of the last `logits_to_keep`
positions, 0 being all of them, so that a prompt over a large vocabulary does not cost T x V numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.export.config import OnnxConfig
from hgrn2.export.graph import END, MICROSOFT, Graph, WeightFile
from hgrn2.export.quantize import Quantized, quantize
from hgrn2.layers.block import Block
from hgrn2.layers.gates import lower_bounds
from hgrn2.layers.glu import GLU
from hgrn2.layers.hgru2 import HGRU2
from hgrn2.layers.norm import Norm
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import check_unchanged

SMALLEST_FORGET = math.exp(-60.0)  # as in the chunked form: e^-60 vanishes beside any other term
LARGEST_FORGET = 1 - 2.0**-24  # the largest float32 below 1
FLOAT_PRODUCTS, BYTE_PRODUCTS = 1, 4  # onnxruntime's accuracy_level


def check_supported(config: ModelConfig) -> None:
    """Refuse what the operator cannot express."""
    kind = config.named_kinds
    if kind != "hgru2":
        why = f"; LinearAttention cannot express the vector states of {kind}" if kind in ("hgru1", "hgru1_real") else ""
        raise UserError(f"the ONNX export is for hgru2, not for {kind}{why}")


@dataclass(frozen=True)
class Matrices:
    """The matrices of a model as the graph holds them, by the names of their parameters."""

    plain: dict[str, np.ndarray]
    """[N,K] float32."""
    quantized: dict[str, Quantized]

    @staticmethod
    def of(model: LanguageModel, config: OnnxConfig) -> "Matrices":
        """Round what the settings want rounded. Embedding rows that do not divide into blocks stay float32."""
        check_unchanged(model, "the model cannot be exported")
        plain, quantized = {}, {}
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2 or name.endswith((".conv", "lower_bounds")):
                continue
            ends = name in ("embedding.weight", "head.weight")
            bits = config.head_bits if ends else config.bits
            uneven = name == "embedding.weight" and parameter.shape[1] % config.block_size != 0
            if bits is None or uneven:
                plain[name] = array_of(parameter)
            else:
                quantized[name] = quantize(array_of(parameter), bits, config.block_size)
        return Matrices(plain, quantized)


def array_of(tensor: Tensor) -> np.ndarray:
    """A parameter as float32 on the CPU."""
    return tensor.detach().float().cpu().numpy()


def state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name after `past.` or `present.` -> shape without the batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    size, taps = config.mixer.head_size, config.mixer.conv_width - 1
    for n in range(config.layers):
        shapes[f"{n}.recurrent"] = (config.heads, size, size)
        if taps > 0:
            shapes[f"{n}.conv"] = (taps, 3 * config.width)
    return shapes


def language_graph(
    model: LanguageModel, matrices: Matrices, file: WeightFile, *, byte_products: bool, standard: bool = True,
    gates: bool = False,
) -> Graph:  # fmt: skip
    """The graph; its large weights are appended to `file`.

    Args:
        model: an hgru2 model (`check_supported`).
        matrices: of this model.
        file: where weights go.
        byte_products: quantised products round the activations to 8 bits.
        standard: the recurrence is the operator of the standard, not onnxruntime's of the same name and meaning.
        gates: what the forget gates did is an output, too.
    """
    level = BYTE_PRODUCTS if byte_products else FLOAT_PRODUCTS
    return _Builder(model, matrices, Graph(file), level, "" if standard else MICROSOFT, gates).build()


class _Builder:
    def __init__(
        self, model: LanguageModel, matrices: Matrices, graph: Graph, level: int, domain: str, gates: bool
    ) -> None:
        self.model, self.config, self.matrices = model, model.config, matrices
        self.graph, self.level, self.domain, self.gates = graph, level, domain, gates

    def build(self) -> Graph:
        g, vocabulary = self.graph, self.config.vocab_size
        tokens = g.declare(g.inputs, "tokens", np.int64, ("batch", "tokens"))
        keep = g.declare(g.inputs, "logits_to_keep", np.int64, (1,))
        for name, shape in state_shapes(self.config).items():
            g.declare(g.inputs, f"past.{name}", np.float32, ("batch", *shape))
            g.declare(g.outputs, f"present.{name}", np.float32, ("batch", *shape))
        g.outputs.insert(
            0, g.onnx.helper.make_tensor_value_info("logits", g.onnx.TensorProto.FLOAT, ("batch", "kept", vocabulary))
        )
        x = self._embedding(tokens)
        backbone = self.model.backbone
        for n, (block, lower_bound) in enumerate(zip(backbone.blocks, self._bounds(), strict=True)):
            assert isinstance(block, Block)
            x = self._block(x, block, lower_bound, n)
        first = g.add("Neg", [keep], "first_kept")
        x = g.add("Slice", [x, first, self._whole([END]), self._whole([1])], "kept")
        assert backbone.norm is not None  # which only classifiers leave out
        x = self._norm(x, backbone.norm, "backbone.norm")
        self._head(x)
        return g

    def _bounds(self) -> list[Tensor | None]:
        """γ of every layer in float64, so that 1-γ keeps its digits where γ is near 1."""
        raw, count = self.model.backbone.lower_bounds, self.config.layers
        if raw is None:
            return [None] * count
        return [None, *lower_bounds(raw.detach().double(), self.config.lower_bound)[1:].unbind(0)]

    def _embedding(self, tokens: str) -> str:
        g, name = self.graph, "embedding.weight"
        if name in self.matrices.quantized:
            table = self.matrices.quantized[name]
            values = table.values.reshape(len(table.values), -1)
            # The same bytes as the head's where the two are tied, in the shape that this operator wants.
            rows = g.weight(f"{name}.rows", values, key=f"{name}.values")
            scales = g.weight(f"{name}.row_scales", table.scales, key=f"{name}.scales")
            x = g.add(
                "GatherBlockQuantized", [rows, tokens, scales], "embedding", domain=MICROSOFT, bits=table.bits,
                block_size=table.block, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
        else:
            x = g.add("Gather", [g.weight(name, self.matrices.plain[name]), tokens], "embedding")
        scale = self.model.embedding_scale
        return x if scale == 1.0 else g.add("Mul", [x, g.constant(scale)], "embedding.scaled")

    def _head(self, x: str) -> None:
        g = self.graph
        if self.model.head is None and "embedding.weight" in self.matrices.plain:
            # A transposed constant is folded when the graph is loaded: stored once, and quick to multiply with.
            table = g.weight("embedding.weight", self.matrices.plain["embedding.weight"])
            g.add("MatMul", [x, g.add("Transpose", [table], "head.weight", perm=[1, 0])], "head", outputs=["logits"])
            return
        name = "embedding.weight" if self.model.head is None else "head.weight"
        self._product(x, name, "head", None, outputs=("logits",))

    def _block(self, x: str, block: Block, lower_bound: Tensor | None, n: int) -> str:
        g, place = self.graph, f"backbone.blocks.{n}"
        assert isinstance(block.mixer, HGRU2)
        y = self._norm(x, block.mixer_norm, f"{place}.mixer_norm")
        y = self._mixer(y, block.mixer, lower_bound, n)
        x = g.add("Add", [x, y], f"{place}.mixed")
        assert block.glu is not None  # which only blocks of Mamba leave out
        assert block.glu_norm is not None
        y = self._norm(x, block.glu_norm, f"{place}.glu_norm")
        y = self._glu(y, block.glu, f"{place}.glu")
        return g.add("Add", [x, y], f"{place}.out")

    def _glu(self, x: str, glu: GLU, place: str) -> str:
        g = self.graph
        both = self._product(x, f"{place}.in_proj.weight", f"{place}.in_proj", glu.in_proj.bias)
        gate, value = f"{place}.gate", f"{place}.value"
        g.add("Split", [both], f"{place}.split", outputs=[gate, value], axis=-1, num_outputs=2)
        gate = self._activation(gate, self.config.glu_activation, place)
        hidden = g.add("Mul", [gate, value], f"{place}.hidden")
        return self._product(hidden, f"{place}.out_proj.weight", f"{place}.out_proj", glu.out_proj.bias)

    def _mixer(self, x: str, mixer: HGRU2, lower_bound: Tensor | None, n: int) -> str:
        g, settings, place = self.graph, mixer.config, f"backbone.blocks.{n}.mixer"
        x = self._product(x, f"{place}.in_proj.weight", f"{place}.in_proj", mixer.in_proj.bias)
        if mixer.conv is not None:
            x = self._convolution(x, mixer.conv, n)
        i, o, f = (f"{place}.{name}" for name in "iof")
        g.add("Split", [x], f"{place}.split", outputs=[i, o, f], axis=-1, num_outputs=3)
        key, decay = self._gates(f, lower_bound, place)
        if self.gates:
            self._gate_output(decay, mixer.heads, n)
        query = self._activation(o, settings.output_activation, f"{place}.o")
        value = self._activation(i, settings.input_activation, f"{place}.i")
        y = g.add(
            "LinearAttention", [query, key, value, f"past.{n}.recurrent", decay], f"{place}.scan",
            outputs=[f"{place}.read", f"present.{n}.recurrent"], update_rule="gated", scale=float(mixer.scale),
            q_num_heads=mixer.heads, kv_num_heads=mixer.heads, domain=self.domain,
        )  # fmt: skip
        y = self._norm(y, mixer.norm, f"{place}.norm")
        return self._product(y, f"{place}.out_proj.weight", f"{place}.out_proj", mixer.out_proj.bias)

    def _gates(self, x: str, lower_bound: Tensor | None, place: str) -> tuple[str, str]:
        """(key (1-γ)σ(-x), log f), each with the relative precision of float32 at every x.

        With a = e^min(x,0) and b = e^-max(x,0): σ(x) = a/(a+b), σ(-x) = b/(a+b), f = (a+γb)/(a+b). A runtime's Sigmoid
        keeps an absolute precision only, so it is not used. log f = key · log(w)/(1-w) with w = f, which has no
        cancellation: near 1, the quotient hardly depends on w, and rounding errors of f do not matter. w keeps away
        from 1, where the quotient is 0/0, and from 0.
        """
        g = self.graph
        a = g.add("Exp", [g.add("Clip", [x, "", g.constant(0.0)], f"{place}.f.low")], f"{place}.f.a")
        b = g.add("Exp", [g.add("Neg", [g.add("Relu", [x], f"{place}.f.high")], f"{place}.f.neg")], f"{place}.f.b")
        whole = g.add("Add", [a, b], f"{place}.f.sum")
        if lower_bound is not None:
            low = g.add("Mul", [b, g.weight(f"{place}.bound", array_of(lower_bound))], f"{place}.f.floor")
            a = g.add("Add", [a, low], f"{place}.f.bounded")
            b = g.add("Mul", [b, g.weight(f"{place}.rest", array_of(1 - lower_bound))], f"{place}.f.rest")
        key = g.add("Div", [b, whole], f"{place}.key")
        limits = [g.constant(SMALLEST_FORGET), g.constant(LARGEST_FORGET)]
        w = g.add("Clip", [g.add("Div", [a, whole], f"{place}.forget"), *limits], f"{place}.f.clipped")
        missing = g.add("Sub", [g.constant(1.0), w], f"{place}.f.missing")
        quotient = g.add("Div", [g.add("Log", [w], f"{place}.f.log"), missing], f"{place}.f.quotient")
        return key, g.add("Mul", [key, quotient], f"{place}.decay")

    def _gate_output(self, decay: str, heads: int, n: int) -> None:
        """ln f [B,T,D] -> gates.N [B,H], summed over the tokens, mean over the channels of each head."""
        g, place = self.graph, f"gates.{n}"
        total = g.add("ReduceSum", [decay, self._whole([1])], f"{place}.total", keepdims=0)
        heads_of = g.add("Reshape", [total, self._whole([0, heads, -1])], f"{place}.heads")
        g.add("ReduceMean", [heads_of, self._whole([2])], f"{place}.mean", outputs=[place], keepdims=0)
        g.declare(g.outputs, place, np.float32, ("batch", heads))

    def _convolution(self, x: str, taps: Tensor, n: int) -> str:
        """Shifted copies times their taps: a depthwise Conv of this layout would transpose twice and is slower."""
        g, place, width = self.graph, f"backbone.blocks.{n}.mixer.conv", taps.shape[1]
        rows = g.add("Concat", [f"past.{n}.conv", x], f"{place}.rows", axis=1)
        axis = self._whole([1])
        last = [rows, self._whole([1 - width]), self._whole([END]), axis]
        g.add("Slice", last, f"{place}.state", outputs=[f"present.{n}.conv"])
        y = ""
        for back in range(width):
            end = self._whole([-back if back else END])
            part = g.add("Slice", [rows, self._whole([width - 1 - back]), end, axis], f"{place}.back{back}")
            part = g.add("Mul", [part, g.weight(f"{place}.tap{back}", array_of(taps[:, back]))], f"{place}.term{back}")
            y = part if not y else g.add("Add", [y, part], f"{place}.sum{back}")
        return y

    def _norm(self, x: str, norm: Norm, place: str) -> str:
        g = self.graph
        weight = np.ones(norm.width, np.float32) if norm.weight is None else array_of(norm.weight)
        if norm.kind == "layer":
            assert norm.bias is not None
            scale, bias = g.weight(f"{place}.weight", weight), g.weight(f"{place}.bias", array_of(norm.bias))
            return g.add("LayerNormalization", [x, scale, bias], place, axis=-1, epsilon=norm.eps)
        if norm.kind != "head_rms":
            return g.add("RMSNormalization", [x, g.weight(f"{place}.weight", weight)], place, axis=-1, epsilon=norm.eps)
        size = norm.width // norm.heads
        x = g.add("Reshape", [x, self._whole([0, 0, norm.heads, size])], f"{place}.heads")
        ones = g.weight(f"{place}.ones", np.ones(size, np.float32))
        x = g.add("RMSNormalization", [x, ones], f"{place}.each", axis=-1, epsilon=norm.eps)
        x = g.add("Reshape", [x, self._whole([0, 0, norm.width])], f"{place}.flat")
        return g.add("Mul", [x, g.weight(f"{place}.weight", weight)], place)

    def _activation(self, x: str, name: str, place: str) -> str:
        g = self.graph
        if name == "none":
            return x
        if name == "gelu":
            return g.add("Gelu", [x], f"{place}.gelu")
        up = g.add("Sigmoid", [x], f"{place}.sigmoid")
        return up if name == "sigmoid" else g.add("Mul", [x, up], f"{place}.silu")

    def _product(self, x: str, weight: str, place: str, bias: Tensor | None, *, outputs: tuple[str, ...] = ()) -> str:
        """x [B,T,K] times a matrix [N,K], plus its bias."""
        g = self.graph
        shift = None if bias is None else g.weight(f"{place}.bias", array_of(bias))
        if weight not in self.matrices.quantized:
            matrix = g.weight(weight, np.ascontiguousarray(self.matrices.plain[weight].T))
            if shift is None:
                return g.add("MatMul", [x, matrix], place, outputs=outputs)
            return g.add("Add", [g.add("MatMul", [x, matrix], f"{place}.product"), shift], place, outputs=outputs)
        packed = self.matrices.quantized[weight]
        inputs = [x, g.weight(f"{weight}.values", packed.values), g.weight(f"{weight}.scales", packed.scales)]
        inputs += [] if shift is None else ["", "", shift]
        return g.add(
            "MatMulNBits", inputs, place, outputs=outputs, domain=MICROSOFT, K=packed.columns, N=len(packed.values),
            bits=packed.bits, block_size=packed.block, accuracy_level=self.level,
        )  # fmt: skip

    def _whole(self, values: list[int]) -> str:
        return self.graph.constant(values, np.int64)
