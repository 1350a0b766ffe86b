"""TLS: real clients, good and bad certificates, strangers."""
