"""The command line: `catdog train|audit|evaluate|register|promote|rollback|history|predict`."""
