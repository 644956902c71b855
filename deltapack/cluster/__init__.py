"""Engines that run the work of a command on the machines of a cluster."""
