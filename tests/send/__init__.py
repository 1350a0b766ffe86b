"""``aggregator send``: every line of every file arrives once, whatever happens to the file, the server or send."""
