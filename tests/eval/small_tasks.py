"""Task files of two or three items."""

ITEMS = {
    "piqa": [
        {"query": "Question: To dry a cup\n", "choices": ["use a towel", "use a wet sponge of water"], "gold": 0},
        {"query": "Question: boil water\n", "choices": ["heat", "cool it down"], "gold": 1},
    ],
    "arc-easy": [
        {"query": "Question: What is hot?", "choices": ["fire", "ice", "a cold stone"], "gold": 0},
        {"query": "Question: What is wet?", "choices": ["sand", "rain"], "gold": 1},
        {"query": "Question: What flies?", "choices": ["a rock", "a bird", "soil", "lead"], "gold": 1},
    ],
    "winogrande": [
        {"context_options": ["Ann met Bea, so Ann", "Ann met Bea, so Bea"], "continuation": "smiled.", "gold": 1},
        {"context_options": ["The cup fell off, as the cup", "The cup fell off, as the table"],
         "continuation": "was wet.", "gold": 0},
    ],
    "lambada": [
        {"context": "He said no and she said", "continuation": "no"},
        {"context": "One, two,", "continuation": "three"},
    ],
}  # fmt: skip
