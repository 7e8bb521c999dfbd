"""HGRN2 and HGRN in vLLM: `register` is the entry point of `vllm.general_plugins`, called in every process of vLLM.

Nothing else of the package imports this folder.
"""

# pyright: reportMissingImports=false

ARCHITECTURES = ("HGRN2ForCausalLM", "HGRN1ForCausalLM", "HGRNForCausalLM")
"""As config.json names them: ours, and flash-linear-attention's HGRNForCausalLM."""


def register() -> None:
    """Tell vLLM how to read config.json, which class computes, and where its graphs must be cut."""
    from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]  (it takes this folder for vLLM)
    from vllm.config import CompilationConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import hgrn2.models.hf  # noqa: F401 - transformers' AutoConfig then knows model_type hgrn2 and hgrn
    from hgrn2.vllm.checks import CheckedConfig

    for name in ARCHITECTURES:
        ModelRegistry.register_model(name, "hgrn2.vllm.model:HGRN2ForCausalLM")
        # Without an entry nobody sets the size of a block of states, on which vLLM insists.
        MODELS_CONFIG_MAP[name] = CheckedConfig
    # Operators that look at the batch stay between the pieces of a graph, as those of vLLM's own models.
    for operator in ("hgrn2_conv", "hgrn2_matrix_scan", "hgrn2_vector_scan"):
        if f"vllm::{operator}" not in CompilationConfig._attention_ops:
            CompilationConfig._attention_ops.append(f"vllm::{operator}")
