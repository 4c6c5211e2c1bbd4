"""Losses: the chunked weighted cross-entropy, and the objectives built on it."""
