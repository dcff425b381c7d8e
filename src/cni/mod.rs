//! The CNI protocol: environment, network configuration, results, error codes, versions.
