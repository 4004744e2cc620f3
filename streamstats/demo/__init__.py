"""The demo: a small real network, and everything from recording to correction shown on it."""
