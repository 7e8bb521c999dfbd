"""Run as a program: what vLLM writes greedily, as JSON. Arguments: a folder, and a JSON object with `prompts` (lists of
ids), `tokens`, `rounds` and `options` of vLLM's `LLM`."""

import json
import sys
from typing import Any


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    folder, asked = sys.argv[1], json.loads(sys.argv[2])
    base: dict[str, Any] = {
        "dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 64,
        "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "enable_prefix_caching": False,
    }  # fmt: skip
    engine = LLM(model=folder, **(base | asked["options"]))
    sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in asked["prompts"]]
    found = []
    for _ in range(asked["rounds"]):
        made = engine.generate(prompts, sampling, use_tqdm=False)
        found.append([{"ids": list(one.outputs[0].token_ids), "cached": one.num_cached_tokens} for one in made])
    print("WRITTEN " + json.dumps(found), flush=True)


if __name__ == "__main__":  # vLLM starts further processes, which import this file
    main()
