"""One module for each contract: `router(service)` makes its routes."""
