"""Pairs that rules of a corpus file find on the hub."""
