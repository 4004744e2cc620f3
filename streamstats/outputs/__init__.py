"""What a run leaves: the ledger of each layer, state files, correctors and the manifest."""
