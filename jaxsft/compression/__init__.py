"""Fine-tuned models stored as what changed of their base, at a sixteenth of their size: Delta-CoMe."""
