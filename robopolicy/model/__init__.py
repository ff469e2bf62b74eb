"""The policy: observations -> tokens -> one vector a frame -> memory -> chunks of actions. Independent of files and simulator."""
