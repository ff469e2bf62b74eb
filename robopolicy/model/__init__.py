"""The policy: observations -> tokens -> one vector a frame -> memory -> chunks of actions. Knows no files and no simulator."""
