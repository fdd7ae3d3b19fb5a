"""Keeps deployments where the aliases of their models point: the command `catdog-follow`."""
