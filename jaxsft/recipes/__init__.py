"""Jobs of several stages, each from folders to a folder, resumable between the stages and inside them."""
