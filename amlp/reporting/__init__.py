"""What people read of a run: the report, its charts and galleries, a summary in the terminal, links on a cluster."""
