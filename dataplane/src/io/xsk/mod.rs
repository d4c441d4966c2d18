//! io/xsk
