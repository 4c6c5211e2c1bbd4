"""What a fine-tuned model has forgotten, and won: two models' answers to the same questions, paired."""
