"""Hostile inputs for every reader: targets, mutations, and the loop that tries them within bounds."""
