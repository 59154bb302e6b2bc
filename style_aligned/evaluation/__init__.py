"""How well it works: palettes, a classifier of drawings, and statistics."""
