"""A stand-in for the Slicer application, to run a scripted module where Slicer cannot be installed. See ../README.md."""
