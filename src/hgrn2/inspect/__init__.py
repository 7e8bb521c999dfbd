"""What a trained model's gates and states do on a text: time scales, states, and outputs as sums over earlier tokens.

    found = trace(model, tokens)              # tokens [T]
    found.layers[0].time_scales()             # tokens, [H,K]
    found.layers[0].contributions(token=50)   # [51,H,V]; their sum is the layer's output at token 50, before its norm

Only kinds of mixers with forget gates can be laid open so; layers of others are listed in `left_out`.
"""

from hgrn2.inspect.states import Difference, differences, effective_rank
from hgrn2.inspect.trace import LayerTrace, Trace, trace

__all__ = ["Difference", "LayerTrace", "Trace", "differences", "effective_rank", "trace"]
