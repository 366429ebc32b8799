//! Safe access to /dev/mshv partitions and guest memory
