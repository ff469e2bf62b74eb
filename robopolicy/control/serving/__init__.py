"""The inside of `robopolicy.control.server`: who may come in, what may be sent, and one forward pass for all who wait."""
