"""Regularizers: a penalty bound to the weights of a network."""

from ellzero.regularizers.regularizer import LayerScale, Regularizer, layer_scales

__all__ = ["LayerScale", "Regularizer", "layer_scales"]
