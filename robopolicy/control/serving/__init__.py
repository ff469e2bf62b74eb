"""Parts of `robopolicy.control.server`: access, message checks, and batched inference."""
