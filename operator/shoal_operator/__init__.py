"""The operator: turns LLMDeployments into running engines, on a cluster or on this machine."""
