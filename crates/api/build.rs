//! Compiles the contracts in `proto/` without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new("../../proto");
    let files = [
        "istio/v1/auth/ca.proto",
        "stats/config.proto",
        "io/istio/http/peer_metadata/config.proto",
        "istio/envoy/config/filter/http/alpn/v2alpha1/config.proto",
        "envoy/tcp/metadataexchange/config.proto",
        "istio/networking/nds/v1/nds.proto",
    ];
    println!("cargo::rerun-if-changed=../../proto");
    let set = protox::compile(files, [root])?;
    let mut config = prost_build::Config::new();
    config.enable_type_names().type_name_domain(["."], "type.googleapis.com");
    // Equal tables are equal bytes.
    config.btree_map([".istio.networking.nds.v1"]);
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .compile_fds_with_config(set, config)?;
    Ok(())
}
