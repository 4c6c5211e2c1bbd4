"""Models with zeros: scores, masks, their refinement, and the job that prunes a checkpoint."""
