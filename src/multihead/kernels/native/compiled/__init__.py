"""What is compiled: the work of one thread, from tiles of scores to the statistics of rows and keys."""
