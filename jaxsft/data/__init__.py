"""From records to batches: sources, conversations, tokens and loss weights, packing."""
