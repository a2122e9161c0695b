"""Folders of inputs, and other long lists of them: where they are found, where results go, and how a run resumes."""
