"""How the chunks of an array are stored, and how they are decoded."""
