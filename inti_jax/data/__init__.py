"""From encoded videos on disk to batches of uint8 clips."""
