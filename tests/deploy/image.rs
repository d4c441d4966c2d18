//! The image's files, laid out by the script that the Dockerfile runs.

use std::fs;
use std::process::Command;

use crate::repository;

#[test]
fn weir_starts_in_the_images_files_alone_and_there_is_no_shell() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("rootfs");
    let mut script = Command::new(repository("deploy/image/rootfs.sh"));
    assert!(script.arg(env!("CARGO_BIN_EXE_weir")).arg(&root).status().unwrap().success());
    for missing in ["bin/sh", "usr/bin/sh", "bin/bash", "usr/bin/env"] {
        assert!(!root.join(missing).exists(), "{missing}");
    }
    if !testbed::is_root() {
        println!("did not run: chroot needs root");
        return;
    }
    // No image builder is asked for: base images come from registries, which tests do not.
    println!("the image itself was not built: it takes base images from a registry");
    let weir = |arguments: &[&str]| {
        let output = Command::new("chroot").arg(&root).arg("/usr/bin/weir").args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(weir(&["--version"]), (true, format!("weir {}\n", env!("CARGO_PKG_VERSION"))));
    fs::copy(repository("deploy/examples/gateway-nat.yaml"), root.join("etc/weir/weir.yaml")).unwrap();
    let (is_good, said) = weir(&["check", "/etc/weir/weir.yaml"]);
    assert!(is_good && said.starts_with("/etc/weir/weir.yaml: "), "{said}");
}

#[test]
fn the_dockerfile_ends_in_the_laid_out_files_and_nothing_else() {
    let text = fs::read_to_string(repository("Dockerfile")).unwrap();
    let steps: Vec<_> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let last = steps.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    assert_eq!(
        steps[last..],
        [
            "FROM scratch",
            "COPY --from=build /rootfs/ /",
            "ENTRYPOINT [\"/usr/bin/weir\"]",
            "CMD [\"run\", \"--config\", \"/etc/weir/weir.yaml\"]",
        ]
    );
    assert!(text.contains("RUN deploy/image/rootfs.sh target/release/weir /rootfs\n"));
    let toolchain = format!("FROM rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(text.contains(&toolchain), "the toolchain of Cargo.toml");
}

#[test]
fn the_unit_has_the_capabilities_of_the_pod() {
    let unit = fs::read_to_string(repository("deploy/systemd/weir.service")).unwrap();
    let bounds = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let names: Vec<_> = bounds.split(' ').map(|name| name.strip_prefix("CAP_").unwrap()).collect();
    assert_eq!(names, crate::manifests::CAPABILITIES);
}
