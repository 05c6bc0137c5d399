"""`shoal bench`: how fast a model or a server is. Nothing here is needed to serve."""
