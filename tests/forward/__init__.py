"""The Forward port: its protocol without a server, a server that speaks it, and the real clients."""
