"""What each tensor and side file of a result is made of."""
