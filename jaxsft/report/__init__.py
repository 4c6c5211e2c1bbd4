"""One HTML page from any set of runs: what was learnt, what was forgotten, question by question."""
