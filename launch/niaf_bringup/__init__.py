"""Starts sets of nodes: reads ``*.launch.yaml`` where upstream's launch is not installed."""
