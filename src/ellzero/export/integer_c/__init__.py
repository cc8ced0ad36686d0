"""C source of integer networks: no floating point between input and output, no memory allocated."""
