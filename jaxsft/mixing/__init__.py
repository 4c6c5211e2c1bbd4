"""Records of a task in other words, and among records that have nothing to do with it."""
