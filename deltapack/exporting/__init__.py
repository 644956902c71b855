"""A pack in forms that other tools load: an adapter of PEFT, a file of differences, files of PyTorch."""
