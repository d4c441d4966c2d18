//! Compiles the XDP program and generates Rust types from its BTF, which `abi.rs` checks its own against.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;
use libbpf_cargo::util::CargoWarningFormatter;

fn main() -> Result<(), Box<dyn Error>> {
    for source in ["weir_xdp.bpf.c", "maps.bpf.h", "headers.bpf.h", "weir_abi.h"] {
        println!("cargo:rerun-if-changed=src/{source}");
    }
    // What clang warns of becomes a warning of cargo's.
    tracing_subscriber::fmt()
        .event_format(CargoWarningFormatter)
        .with_env_filter("compiler-stderr=info")
        .init();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut arguments = vec!["-Wall".to_owned(), "-Wextra".to_owned()];
    arguments.extend(multiarch_include());
    SkeletonBuilder::new()
        .source("src/weir_xdp.bpf.c")
        .obj(out.join("weir_xdp.o"))
        .reference_obj(true)
        .clang_args(arguments)
        // No such file: the code is for the compiler alone, and a toolchain without rustfmt will do.
        .rustfmt(out.join("no-rustfmt"))
        .build_and_generate(out.join("weir_xdp.skel.rs"))
        .map_err(|error| {
            format!("the XDP program does not build (it needs clang and libc6-dev): {error:?}").into()
        })
}

/// Where Debian keeps `asm/types.h`; the BPF target does not look there by itself.
fn multiarch_include() -> Option<String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").ok()?;
    let directory = format!("/usr/include/{arch}-linux-gnu");
    Path::new(&directory).is_dir().then(|| format!("-I{directory}"))
}
