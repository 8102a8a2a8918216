//! Findings and kernel events become alerts with a life of their own. No network.
