"""Closed-loop episodes, their statistics, and policies in third-party environments; imports gymnasium, never MuJoCo."""
