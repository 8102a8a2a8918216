//! What the machine is: os, cpu, numa, memory, disks, network, as one JSON object.
