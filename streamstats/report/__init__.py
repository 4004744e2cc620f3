"""Results to look at: pictures of statistics, and a page on what a correction does."""
