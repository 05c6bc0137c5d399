"""`shoal up`: the same manifests as processes of this machine. Knows nothing of Kubernetes."""
