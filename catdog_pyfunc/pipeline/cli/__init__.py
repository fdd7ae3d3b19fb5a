"""The command line: `catdog train|evaluate|register|promote|rollback|history|predict`."""
