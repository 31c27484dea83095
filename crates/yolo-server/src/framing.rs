//! Follows the requests of an HTTP/1 connection through its bytes, and spoils those whose end is in doubt.
//!
//! hyper takes a lone line feed for a line's end, and of a length and chunks the chunks; both are allowed (RFC 9112, 2.2
//! and 6.3). A proxy in front may choose otherwise, and then takes a part of one client's body for another's request. The
//! parsed request tells neither, so the bytes are looked at before hyper has them: what it must refuse is made something
//! that it refuses.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a line that are looked at: names, lengths and sizes. One that does not fit is padded to confuse.
const LINE_BYTES_MAX: usize = 64;

/// What a spoiled head goes on with: of one that has come in pieces hyper looks for the end before it parses anything.
const HEAD_FILLER: u8 = b'\n';
const HEAD_END: [u8; 2] = [HEAD_FILLER; 2];

/// A stream of requests whose framing is unambiguous.
pub(crate) struct StrictIo<T> {
    io: T,
    framing: Framing,
}

impl<T> StrictIo<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, framing: Framing::default() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StrictIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let sound = self.framing.sound();
        self.framing.follow(buffer.filled_mut().split_at_mut(before).1);
        if sound && self.framing.part == Part::Spoiled(HEAD_FILLER) && buffer.remaining() >= HEAD_END.len() {
            buffer.put_slice(&HEAD_END); // nothing more may come
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StrictIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Which part of a request comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A line of its head.
    Head,
    /// So many bytes of content, then the next request.
    Content(u64),
    /// The line before a chunk.
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The empty line after it.
    ChunkEnd,
    /// A line after the last chunk.
    Trailers,
    /// Nothing that shall be read: all bytes are made this one.
    Spoiled(u8),
}

/// A line whose end two parsers could see in two places, or a length that they could read as two.
#[derive(Debug)]
struct InDoubt;

/// Where in which request a connection is.
///
/// It is no stricter than hyper in anything else: what hyper refuses, it may misunderstand.
#[derive(Debug)]
struct Framing {
    part: Part,
    /// The content's length, if the head has named one.
    length: Option<u64>,
    /// Whether the head has named a transfer coding.
    coded: bool,
    /// The first bytes of the line being read.
    line: [u8; LINE_BYTES_MAX],
    /// The line's bytes so far, also those that are not kept.
    line_bytes: usize,
    /// The last of them, of which only a carriage return counts.
    last: u8,
}

impl Default for Framing {
    fn default() -> Self {
        Self { part: Part::Head, length: None, coded: false, line: [0; LINE_BYTES_MAX], line_bytes: 0, last: 0 }
    }
}

impl Framing {
    /// Reads on; changes `bytes` only from where a request is in doubt, so that no parser accepts it.
    fn follow(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            bytes = match self.part {
                Part::Content(left) => self.skip(bytes, left, Part::Content, Part::Head),
                Part::Chunk(left) => self.skip(bytes, left, Part::Chunk, Part::ChunkEnd),
                Part::Spoiled(filler) => return bytes.fill(filler),
                Part::Head | Part::ChunkSize | Part::ChunkEnd | Part::Trailers => self.read_line(bytes),
            };
        }
    }

    const fn sound(&self) -> bool {
        !matches!(self.part, Part::Spoiled(_))
    }

    fn skip<'a>(&mut self, bytes: &'a mut [u8], left: u64, rest: fn(u64) -> Part, then: Part) -> &'a mut [u8] {
        let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let left = left.saturating_sub(taken as u64);
        self.part = if left == 0 { then } else { rest(left) };
        bytes.split_at_mut(taken).1
    }

    /// Reads to the line's end, or keeps what has come of it.
    fn read_line<'a>(&mut self, bytes: &'a mut [u8]) -> &'a mut [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (line, tail) = bytes.split_at_mut(end.unwrap_or(bytes.len()));
        let free = self.line.get_mut(self.line_bytes..).unwrap_or_default();
        free.iter_mut().zip(&*line).for_each(|(kept, byte)| *kept = *byte);
        self.line_bytes = self.line_bytes.saturating_add(line.len());
        self.last = line.last().copied().unwrap_or(self.last);
        let Some((line_feed, rest)) = tail.split_first_mut() else { return &mut [] };
        let in_head = self.part == Part::Head;
        self.part = self.line_end().unwrap_or(Part::Spoiled(if in_head { HEAD_FILLER } else { 0 }));
        if !self.sound() {
            // A zero anywhere in a head, and what is no line feed after a carriage return: no parser goes on.
            *line_feed = if in_head || self.last == b'\r' { 0 } else { b'\r' };
        }
        (self.line_bytes, self.last) = (0, 0);
        rest
    }

    /// What follows after the line that has come.
    fn line_end(&mut self) -> Result<Part, InDoubt> {
        let length = self.line_bytes.checked_sub(1).filter(|_| self.last == b'\r').ok_or(InDoubt)?;
        let line = self.line;
        let (line, whole) = (line.get(..length).unwrap_or(&line), length <= LINE_BYTES_MAX);
        match self.part {
            Part::Head if line.is_empty() => Ok(self.head_end()),
            Part::Head => self.field(line, whole).map(|()| Part::Head),
            Part::ChunkSize => {
                chunk_size(line, whole).map(|size| if size == 0 { Part::Trailers } else { Part::Chunk(size) })
            }
            Part::ChunkEnd if line.is_empty() => Ok(Part::ChunkSize),
            Part::Trailers if line.is_empty() => Ok(Part::Head),
            Part::Trailers => Ok(Part::Trailers),
            Part::ChunkEnd | Part::Content(_) | Part::Chunk(_) | Part::Spoiled(_) => Err(InDoubt),
        }
    }

    /// Reads a line of a head, which is `whole` or only its begin.
    fn field(&mut self, line: &[u8], whole: bool) -> Result<(), InDoubt> {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = line.split_at(colon);
        let is_length = name.eq_ignore_ascii_case(b"content-length");
        self.coded |= name.eq_ignore_ascii_case(b"transfer-encoding");
        if is_length {
            let digits = value.split_first().filter(|_| whole).map(|(_, value)| value.trim_ascii()).ok_or(InDoubt)?;
            let length = number(digits, 10)?;
            if self.length.is_some_and(|other| other != length) {
                return Err(InDoubt);
            }
            self.length = Some(length);
        }
        if self.coded && self.length.is_some() { Err(InDoubt) } else { Ok(()) }
    }

    /// What follows the head.
    fn head_end(&mut self) -> Part {
        match (std::mem::take(&mut self.coded), self.length.take()) {
            (true, _) => Part::ChunkSize,
            (false, None | Some(0)) => Part::Head,
            (false, Some(length)) => Part::Content(length),
        }
    }
}

/// Reads the line before a chunk, which is `whole` or only its begin.
fn chunk_size(line: &[u8], whole: bool) -> Result<u64, InDoubt> {
    let end = line.iter().position(|byte| matches!(byte, b';' | b' ' | b'\t'));
    let end = end.or_else(|| whole.then_some(line.len())).ok_or(InDoubt)?;
    number(line.split_at(end).0, 16)
}

/// A number of digits only.
fn number(digits: &[u8], radix: u32) -> Result<u64, InDoubt> {
    // `from_str_radix` takes a sign.
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+')).ok_or(InDoubt)?;
    u64::from_str_radix(text, radix).map_err(|_| InDoubt)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use hyper::Response;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// The bytes that hyper gets of those that come in pieces of these sizes.
    fn read(sent: &[u8], piece_bytes: usize) -> Vec<u8> {
        let (mut framing, mut bytes) = (Framing::default(), sent.to_vec());
        bytes.chunks_mut(piece_bytes).for_each(|piece| framing.follow(piece));
        bytes
    }

    #[test]
    fn requests_in_order_are_left_as_they_are() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let requests = [
            "GET /a HTTP/1.1\r\nHost: t\r\n\r\n".to_owned(),
            "\r\nPOST / HTTP/1.1\r\ncontent-LENGTH: \t7 \r\n\r\na\nb\r\n\nc".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 00\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\n\n\r\n0\r\n\r\n".to_owned(),
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1 ;{long}\r\n\r\r\n0\r\n\r\n"),
            "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\n\r\na;b=\"c\"\r\n0123\n5678\n\r\n00\r\nX: y\r\n\r\n"
                .to_owned(),
            format!("GET /{long} HTTP/1.1\r\n{long}: {long}\r\nX-Content-Length: x\r\n\r\n"),
            format!("POST / HTTP/1.1\r\nX: {long}\r\nContent-Length: {}\r\n\r\n{long}", long.len()),
        ];
        // Each follows each: an end that was missed would show in the next.
        let pairs = requests.iter().flat_map(|first| requests.iter().flat_map(move |second| [first, second]));
        let sent = pairs.cloned().collect::<String>().into_bytes();
        for piece_bytes in [1, 2, 3, 7, 64, 65, sent.len()] {
            assert_eq!(read(&sent, piece_bytes), sent, "in pieces of {piece_bytes} bytes");
        }
    }

    #[test]
    fn a_request_in_doubt_is_spoiled_from_there_on() {
        let zeros = "0".repeat(LINE_BYTES_MAX);
        let padded = format!("Content-Length: {}1", " ".repeat(LINE_BYTES_MAX));
        // The part before `|` is in order.
        let cases = [
            "GET / HTTP/1.1|\nHost: t\n\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: t|\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: t\r\n|\n".to_owned(),
            "|\nGET / HTTP/1.1\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1|\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\nGET / HTTP/1.1|\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r|\n\r\n0\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nX: y\r\nCONTENT-length:1\r|\n\r\n0\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: identity\r|\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r|\n\r\nxx".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: +1\r|\n\r\nx".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length:\r|\n\r\nx".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r|\n\r\nx".to_owned(),
            format!("POST / HTTP/1.1\r\n{padded}\r|\n\r\nx"),
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{zeros}1\r|\nx\r\n0\r\n\r\n"),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1|\nx\r\n0\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+1\r|\nx\r\n0\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx|\n0\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r|\n0\r\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y|\n\r\n".to_owned(),
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n|\n".to_owned(),
        ];
        for case in cases {
            let (before, after) = case.split_once('|').unwrap();
            let in_head = !before.contains("chunked\r\n\r\n");
            let spoiled = if in_head || before.ends_with('\r') { 0 } else { b'\r' };
            let sent = [before, after].concat().into_bytes();
            let mut expected = before.as_bytes().to_vec();
            expected.push(spoiled);
            expected.resize(sent.len(), if in_head { b'\n' } else { 0 });
            for piece_bytes in 1..=sent.len() {
                assert_eq!(read(&sent, piece_bytes), expected, "{case:?} in pieces of {piece_bytes} bytes");
            }
        }
    }

    #[tokio::test]
    async fn a_head_in_doubt_is_refused_at_once_in_whatever_pieces_it_comes() {
        for head in [
            "GET / HTTP/1.1\nHost: t\n\n",
            "GET / HTTP/1.1\r\nHost: t\n\r\n",
            "GET / HTTP/1.1\r\nHost: t\r\n\n",
            "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nHost: t\r\n\r\n",
        ] {
            for piece_bytes in [1, 7, 4_096] {
                let (client, server) = tokio::io::duplex(piece_bytes);
                let service = service_fn(async |_| Ok::<_, Infallible>(Response::new("served".to_owned())));
                let serving = http1::Builder::new().serve_connection(TokioIo::new(StrictIo::new(server)), service);
                let (mut reading, mut writing) = tokio::io::split(client);
                let asking = async {
                    let mut answer = String::new();
                    let reads = reading.read_to_string(&mut answer);
                    let (_, read) = tokio::join!(writing.write_all(head.as_bytes()), reads);
                    read.map(|_| answer)
                };
                let exchange = futures::future::join(serving, asking);
                let (_, answer) = tokio::time::timeout(Duration::from_mins(1), exchange).await.expect(head);
                assert!(answer.unwrap().starts_with("HTTP/1.1 400"), "{head:?} in pieces of {piece_bytes} bytes");
            }
        }
    }
}
