//! Clients that attack HTTP/2 on the gRPC port, frame by frame: their connection is ended, others are served on.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yolo_server::Server;

use crate::grpc::is_live;
use crate::support::{PATIENCE, emulated, eventually, metric, start};

/// What every client says first, and its empty settings (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// Error codes (RFC 9113, 7).
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;
/// `POST http://a/`, as HPACK's static table has it (RFC 7541, appendix A).
const HEAD: &[u8] = &[0x83, 0x86, 0x84, 0x01, 1, b'a'];
/// A header of 16 bytes that nobody indexes: `a: aaaaaaaaaaaa`.
const FILLER: &[u8] = b"\0\x01a\x0caaaaaaaaaaaa";
/// More than the sockets' buffers hold: whoever takes as much of an attack reads on for ever.
const ATTACK_BYTES_MAX: usize = 16 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends `attack(0)`, `attack(1)` and so on until the server takes no more; the error code of its last frame.
async fn ended_with(server: &Server, attack: impl Fn(u32) -> Vec<u8>) -> u32 {
    let mut stream = TcpStream::connect(server.grpc_address()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let mut sent = 0;
        writer.write_all(PREFACE).await.unwrap();
        for round in 0.. {
            let bytes = attack(round);
            sent += bytes.len();
            assert!(sent < ATTACK_BYTES_MAX, "never ended");
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let mut frames = Vec::new();
    let read = async {
        // A reset is an end too: the server leaves unread what it does not want.
        let _ = reader.read_to_end(&mut frames).await;
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(send, read) }).await.expect("the server ends the connection");
    let mut rest = frames.as_slice();
    let mut last = None;
    while let Some((head, payload)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, behind) = payload.split_at(length);
        if head[3] == GOAWAY {
            last = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        rest = behind;
    }
    last.expect("GOAWAY")
}

async fn serves_on(server: &Server) {
    assert!(is_live(server).await);
    for gauge in ["yolo_http_requests_in_flight", "yolo_images_in_flight"] {
        eventually(gauge, async || metric(server, gauge).await < 0.5).await;
    }
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let server = start(emulated(0, 1)).await;
    let burst = |round: u32| {
        let reset = |number: u32| {
            let stream = 2 * (1_000 * round + number) + 1;
            [frame(HEADERS, END_HEADERS, stream, HEAD), frame(RST_STREAM, 0, stream, &CANCEL)].concat()
        };
        (0..1_000).flat_map(reset).collect()
    };
    assert_eq!(ended_with(&server, burst).await, ENHANCE_YOUR_CALM);
    serves_on(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_never_ends_ends_its_connection() {
    let server = start(emulated(0, 1)).await;
    for filler in [FILLER.repeat(1_000), vec![]] {
        let endless = |round: u32| match round {
            0 => frame(HEADERS, 0, 1, HEAD),
            _ => frame(CONTINUATION, 0, 1, &filler).repeat(16),
        };
        assert_eq!(ended_with(&server, endless).await, ENHANCE_YOUR_CALM, "{} bytes a frame", filler.len());
    }
    serves_on(&server).await;
    server.stop().await;
}
