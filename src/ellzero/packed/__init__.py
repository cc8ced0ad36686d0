"""Packed files (.ellz): a network in as few bytes as it takes, and read again with care."""
