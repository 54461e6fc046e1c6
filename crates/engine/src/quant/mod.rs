//! Weight types: layout and exact dequantization, one file each.
