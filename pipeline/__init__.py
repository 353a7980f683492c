"""Train an encoder-decoder on text pairs, and summarize document stores with it."""

__version__ = "0.1.0"
