"""Experiments beside the grid of networks: one module for each."""
