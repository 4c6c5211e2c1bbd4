"""Continuing prompts."""
