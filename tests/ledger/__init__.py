"""The key ledger: an event that is sent again, at any time and after any fault, is found under its first seq.

All constants of the ledger are tiny here, so that a few dozen keys pass through flushes, merges and levels.
"""
