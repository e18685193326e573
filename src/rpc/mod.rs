//! Floor 4: the generated protobuf code, and the conversions between it and `types/`.

pub mod convert;
pub mod validate;

/// The public services, from `proto/kvorum/v1/`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("kvorum.v1");
}

/// The service between nodes, from `proto/kvorum/internal/v1/`.
pub mod internal {
    /// Its only version.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("kvorum.internal.v1");
    }
}

/// The file descriptors of all protos, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
