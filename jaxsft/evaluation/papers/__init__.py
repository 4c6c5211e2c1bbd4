"""What single papers measure: instruction following, separation of data, context against knowledge, probes."""
