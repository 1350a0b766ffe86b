"""Who may do what: identities, their proofs and permissions. Pure, but for reading one file."""
