"""The command line `catdog`: a module for each command."""
