"""Reports of studies and runs, made from their records alone."""
