"""Who may do what: identities, their proofs and permissions.

Pure, except for reading two files: that of ``--identities``, and the kernel's overflow uid.
"""
