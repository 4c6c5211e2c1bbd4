"""Answers that the model writes, and what they are compared with."""
