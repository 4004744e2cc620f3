"""The service: jobs over HTTP, done by the functions that the command line calls. Only it imports HTTP libraries."""
