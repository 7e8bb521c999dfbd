"""Controlled comparisons of language models: same data, trainer and budget; learning rates swept for each; seeds."""
