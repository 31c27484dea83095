//! Buckets: S3 as moto speaks it; public ones of Google Cloud Storage and Azure.

use std::net::SocketAddr;

use crate::program::{Fetch, model, sha256};
use crate::proxy::{Break, Proxy};
use crate::servers::Server;

const SIZE: usize = 4 << 20;

fn s3(uri: &str, endpoint: SocketAddr) -> Fetch {
    Fetch::new(uri, "")
        .env("AWS_ENDPOINT_URL", &format!("http://{endpoint}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "reader")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
}

#[test]
fn object_of_a_bucket_comes_and_a_cut_transfer_goes_on() {
    let model = model(SIZE);
    let server = Server::s3();
    server.request("PUT /models/detect/a.onnx", &model);
    let proxy = Proxy::start(server.address, vec![Break::Cut(1 << 20)]);
    s3("s3://models/detect/a.onnx", proxy.address).sha256(&sha256(&model)).brings(&model);
    assert_eq!(proxy.connections(), 2);
    assert!(proxy.down() < SIZE as u64 + (64 << 10), "{} bytes: some came twice", proxy.down());
}

#[test]
fn key_and_bucket_that_are_not_there_are_missing() {
    let server = Server::s3();
    for uri in ["s3://models/absent.onnx", "s3://absent/a.onnx"] {
        s3(uri, server.address).sha256(&"0".repeat(64)).fails("model_missing", &[uri, "404"]);
    }
}

/// What these two read of a bucket is a file with an `ETag`, a date and ranges, which nginx serves too; what a store of
/// theirs thinks of a signature is not tested.
#[test]
fn public_objects_of_google_and_azure_come_from_their_buckets_and_containers() {
    let model = model(SIZE);
    let server = Server::nginx(&[("a.onnx", &model)]);
    for (uri, endpoint, public) in [
        ("gs://models/a.onnx", "GOOGLE_BASE_URL", "GOOGLE_SKIP_SIGNATURE"),
        ("az://models/a.onnx", "AZURE_STORAGE_ENDPOINT", "AZURE_SKIP_SIGNATURE"),
    ] {
        let proxy = Proxy::start(server.address, vec![Break::Cut(1 << 20)]);
        let fetch = |uri: &str| {
            let endpoint = (endpoint, format!("https://{}", proxy.address));
            let fetch = Fetch::new(uri, &server.authority).env(endpoint.0, &endpoint.1).env(public, "true");
            fetch.env("AZURE_STORAGE_ACCOUNT_NAME", "account")
        };
        fetch(uri).sha256(&sha256(&model)).brings(&model);
        assert!(proxy.down() < SIZE as u64 + (128 << 10), "{} bytes: some came twice", proxy.down());
        let absent = uri.replace("a.onnx", "absent.onnx");
        fetch(&absent).sha256(&"0".repeat(64)).fails("model_missing", &[&absent]);
    }
}
