//! Turns `proto/inference.proto` into Rust. In Rust alone: nobody needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/inference.proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    // Tensors are `Bytes`: slices of the received message, not copies of it.
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .bytes(".")
        .codec_path("crate::http::oip::grpc::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
