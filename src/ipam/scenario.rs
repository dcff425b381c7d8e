//! Scenarios and tables from the reference, by number.
