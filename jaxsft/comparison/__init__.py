"""Methods compared on the embedded world: jobs, the processes that do them, and tables."""
