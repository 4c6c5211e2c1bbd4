"""Questions with choices, of which the likeliest is the answer."""
