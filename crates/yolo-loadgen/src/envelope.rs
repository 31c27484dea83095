//! How a picture becomes the body of a request: APIs differ in this and in nothing else that a load generator needs.

use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Builder;

/// Separates the parts of a form; no picture holds it by chance (62^16 such lines).
const BOUNDARY: &str = "----yolo-load-Vq7Zc1Rk93XnTb5u";

/// The form of a request that carries one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Envelope {
    /// The file itself, `Content-Type: image/jpeg`.
    #[default]
    Raw,
    /// `multipart/form-data` with the file as the part of this name.
    Form(&'static str),
    /// Open Inference Protocol v2 with the binary extension: the file is the one BYTES element of this input,
    /// `[1, 1]` (batch, elements).
    Tensor(&'static str),
}

impl Envelope {
    /// Headers that go with the picture, and the body.
    pub(crate) fn wrap(self, request: Builder, picture: Bytes) -> (Builder, Bytes) {
        match self {
            Self::Raw => (request.header(CONTENT_TYPE, "image/jpeg"), picture),
            Self::Form(part) => {
                let kind = format!("multipart/form-data; boundary={BOUNDARY}");
                let head = format!(
                    "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{part}\"; filename=\"picture.jpg\"\r\n\
                     Content-Type: image/jpeg\r\n\r\n"
                );
                let tail = format!("\r\n--{BOUNDARY}--\r\n");
                (request.header(CONTENT_TYPE, kind), joined(&[head.as_bytes(), &picture, tail.as_bytes()]))
            }
            Self::Tensor(input) => {
                // A BYTES element is its length as u32, little-endian, then the bytes.
                let length = u32::try_from(picture.len()).unwrap_or(u32::MAX).to_le_bytes();
                let header = serde_json::json!({"inputs": [{
                    "name": input, "datatype": "BYTES", "shape": [1, 1],
                    "parameters": {"binary_data_size": length.len() + picture.len()},
                }]})
                .to_string();
                let request = request
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header("Inference-Header-Content-Length", header.len());
                (request, joined(&[header.as_bytes(), &length, &picture]))
            }
        }
    }
}

fn joined(parts: &[&[u8]]) -> Bytes {
    Bytes::from(parts.concat())
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    #[test]
    fn a_tensor_body_is_the_announced_header_then_length_and_picture() {
        let (request, body) = Envelope::Tensor("image").wrap(Request::post("/"), Bytes::from_static(b"JPEG"));
        let request = request.body(()).unwrap();
        let header: usize = request.headers()["Inference-Header-Content-Length"].to_str().unwrap().parse().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body[..header]).unwrap();
        assert_eq!(json["inputs"][0]["parameters"]["binary_data_size"], body.len() - header);
        assert_eq!(body[header..], *b"\x04\0\0\0JPEG");
    }
}
