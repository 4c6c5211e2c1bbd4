"""One decoder, its families as data, and Hugging Face weights in and out."""
