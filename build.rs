//! Compiles the protos with protox, so that no protoc is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = [
        "kvorum/v1/kv.proto",
        "kvorum/v1/changelog.proto",
        "kvorum/v1/index.proto",
        "kvorum/v1/saga.proto",
        "kvorum/v1/cluster.proto",
        "kvorum/internal/v1/node.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(protos, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Only the trailing messages carry bulk bytes; `Bytes` spares a copy of each.
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    // Rare, and every reply would be as large as the largest.
    config.boxed(".kvorum.v1.Error.conflict");
    config.boxed(".kvorum.v1.Error.moved");
    config.boxed(".kvorum.v1.SessionReply.reply.changes_page");
    config.boxed(".kvorum.v1.SessionReply.reply.saga");
    config.boxed(".kvorum.v1.SessionRequest.request.saga");
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
