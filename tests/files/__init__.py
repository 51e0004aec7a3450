"""Files that break: damages as data, mutations for every reader, processes that are killed."""
