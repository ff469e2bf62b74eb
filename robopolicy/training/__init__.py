"""Training: batches, steps, schedules and checkpoints; needs no simulator."""
