"""New tokens: rows for them in the embedding and the head, and the tokenizer's files."""
