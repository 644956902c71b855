"""Where bytes come from: files of this machine and of others, read at positions by any number of threads."""
