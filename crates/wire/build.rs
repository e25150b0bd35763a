// SPDX-License-Identifier: Apache-2.0
//! Compiles the protobuf files without a `protoc` to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "istio/workload.proto",
        "istio/authorization.proto",
        "istio/ca.proto",
        "envoy/auth.proto",
        "envoy/discovery.proto",
        "zds/zds.proto",
        "meltemi/l7.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // Maps in order: the same value is always the same bytes.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
