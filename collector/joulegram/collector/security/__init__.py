"""Who may send, who may read, and how nobody listens in; docs/security.md has the threats."""
