"""What is trained beside, or instead of, the base: tuning methods and their arrays."""
