"""From encoded bytes to uint8 arrays, by threads or processes."""
