"""State, the pure step, optimizers, checkpoints and the loop."""
