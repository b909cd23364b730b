"""The machine: devices, memory, processes, required packages."""
