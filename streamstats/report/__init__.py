"""Results to look at: pictures of statistics, and a page that shows what a correction does."""
