"""The container: bytes to index and blobs and back. Knows no tensor arithmetic."""
