"""Studies: many runs, and the statistics over them."""
