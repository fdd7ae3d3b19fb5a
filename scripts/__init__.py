"""The programs that MLproject runs, each one command of `catdog`, and the demo."""
