"""Cutting a data set into parts, each for a sub-model of its own (Disperse-Then-Merge)."""
