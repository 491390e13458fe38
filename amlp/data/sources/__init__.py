"""Where cases come from: one adapter for each kind of source."""
