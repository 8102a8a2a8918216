//! What crosses the kernel boundary: one file for each probe, `repr(C)`, the same bytes on both sides.
#![no_std]
