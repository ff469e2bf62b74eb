"""The policy: observations -> tokens -> one vector a frame -> memory -> chunks of actions. Needs no files or simulator."""
