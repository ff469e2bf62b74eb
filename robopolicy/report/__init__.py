"""Self-contained HTML pages about one evaluation or several runs, and videos of demos."""
