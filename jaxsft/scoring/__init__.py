"""Passes over the data before training: scores of examples, made once and kept."""
