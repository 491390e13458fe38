"""The stages on a cluster: object storage, what a RayJob runs, and the launcher that submits it."""
