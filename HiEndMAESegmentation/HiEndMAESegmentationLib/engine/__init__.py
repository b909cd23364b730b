"""Everything that runs HiEndMAECore: jobs in a child process, the model library, packages. Imports nothing by itself."""
