"""Models made of models: arithmetic on their parameters."""
