"""A stand-in for the Slicer application, which runs a scripted module where Slicer is not installed. See ../README.md."""
