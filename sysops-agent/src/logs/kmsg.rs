//! Reads /dev/kmsg record by record.
