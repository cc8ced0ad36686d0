"""Compaction: what cannot matter to a network's output is found, and leaves."""
