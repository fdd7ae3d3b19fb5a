"""Model versions, audit log, reconciliation, gate, promotion."""
