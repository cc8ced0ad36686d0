"""C99 source of a network: storages, steps, the files, and a way to call them from Python."""
