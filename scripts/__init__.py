"""Programs that MLproject runs: parse, call, print."""
