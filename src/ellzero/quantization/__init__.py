"""Quantization: weights of few distinct values, chosen under a budget and fine-tuned."""
