"""The service: jobs over HTTP. A thin face over the functions that the command line calls; the only HTTP importer."""
