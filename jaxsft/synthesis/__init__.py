"""Data that a model writes: records in, prompts, answers, and records that can be trained on out.

A method (`registry.py`) is pure but for asking the model, which `run.py` does for it by resumable jobs.
"""
