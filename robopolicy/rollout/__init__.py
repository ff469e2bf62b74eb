"""Closed-loop episodes, their statistics, and policies in environments of others; knows gymnasium, never MuJoCo."""
