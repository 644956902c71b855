"""What the streams of a pack mean: index codecs, value codecs, byte planes."""
