"""The key ledger: an event that is sent again, at any moment and after any fault, is known under its first seq.

All constants of the ledger are tiny here, so that a few dozen keys pass through flushes, merges and levels.
"""
