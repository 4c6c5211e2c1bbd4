"""What a model can do, what it forgot, how far it moved."""
