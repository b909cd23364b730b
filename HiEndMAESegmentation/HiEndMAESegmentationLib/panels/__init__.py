"""The panels of the module, and the widgets that they share."""
