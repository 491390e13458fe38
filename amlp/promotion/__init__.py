"""Which version serves: the gate, its decisions, the ledger of all of them, and what they change in the registry."""
