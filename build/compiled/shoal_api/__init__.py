"""The contract all Shoal programs agree on: the LLMDeployment resource, its options, names, block hashes."""
