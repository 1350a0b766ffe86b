"""The wrap port, which stores any text that arrives, and its parts without input or output."""
