"""The policy: observations -> tokens -> one vector per frame -> memory -> chunks of actions. Needs no files or simulator."""
