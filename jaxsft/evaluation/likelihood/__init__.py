"""Scores of text: how likely it is, how far from another model, by which experts."""
