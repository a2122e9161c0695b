"""Folders and other long lists of inputs: finding them, writing results, and resuming a run."""
