"""The command line. Calls the public use cases and prints their reports; computes nothing itself."""
