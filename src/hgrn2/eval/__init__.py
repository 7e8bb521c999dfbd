"""Standard tests of language models: zero-shot tasks, WikiText, loss by position."""
