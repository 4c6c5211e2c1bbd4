"""Programs that the model writes, run in a sandbox."""
