"""Studies: methods x strengths x seeds x targets under one protocol."""
