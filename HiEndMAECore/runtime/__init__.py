"""The machine: devices, memory, processes, and required packages."""
