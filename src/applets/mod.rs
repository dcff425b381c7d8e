//! What can be run: one module per applet, argument parsing and wiring only.
