"""The wrap port: whatever text arrives is stored, and its parts without input or output."""
