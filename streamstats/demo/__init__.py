"""A small real network, and the whole way from recording to correction shown on it."""
