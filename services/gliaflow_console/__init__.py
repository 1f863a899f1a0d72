"""The console: scans, masks, queues and generators in a browser."""
