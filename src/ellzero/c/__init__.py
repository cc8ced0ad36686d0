"""What generated C is made of, as text: constant arrays, how weights lie, functions."""
