"""The ways to a mean that are compared, one a module; `measuring` says what a module has to offer."""
