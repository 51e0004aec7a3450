"""Networks as records of three pure functions; parameters are pytrees. `core` says what a network is."""
