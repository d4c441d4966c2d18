//! Where the desired state comes from beside the configuration file and `ipvsadm`.

pub mod kubernetes;
