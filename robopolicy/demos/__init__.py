"""Demonstrations: files read and written, windows found in them, batches gathered from them."""
