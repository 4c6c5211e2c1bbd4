"""The model class of lm-evaluation-harness."""
