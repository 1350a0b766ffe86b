"""TLS: real clients, certificates good and bad, strangers."""
