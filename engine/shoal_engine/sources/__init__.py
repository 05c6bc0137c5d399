"""Model sources: bring the files behind a uri into a folder. Not the reading of a checkpoint."""
