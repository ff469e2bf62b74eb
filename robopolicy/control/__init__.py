"""What runs on a robot computer: no h5py, no Lightning, no simulator."""
