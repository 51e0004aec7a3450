"""MEASURED: what a function and its parameters do, counted on the very network; never uses a formula of theory."""
