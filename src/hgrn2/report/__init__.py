"""A run as one page: figures, samples, settings."""
